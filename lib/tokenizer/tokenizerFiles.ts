/** The files that a tokenizer is made from. */
import path from 'node:path';
import { isGguf } from '../model/gguf/files';
import { readChatTemplates } from './chatTemplateFiles';
import { readGgufTemplates } from './gguf/ggufTokenizer';
import { readSpecialTokens, type SpecialTokensConfig } from './specialTokens';
import type { ChatTemplateFile } from './threadMessages';

/** The file of a tokenizer in `folder`, which may be a GGUF file, and what is beside it. */
export async function readTokenizerFiles(folder: string): Promise<{
  file: string;
  templates: readonly ChatTemplateFile[];
  tokens: SpecialTokensConfig | null;
}> {
  if (isGguf(folder)) {
    return { file: folder, templates: await readGgufTemplates(folder), tokens: null };
  }
  const { config, tokens } = await readSpecialTokens(folder);
  const templates = await readChatTemplates(folder, config.chat_template);
  return { file: path.join(folder, 'tokenizer.json'), templates, tokens };
}
