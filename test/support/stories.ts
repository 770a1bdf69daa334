import { readFileSync } from 'node:fs';
import path from 'node:path';

/** transformers' greedy outputs in float32 with the package's model. */
interface Reference {
  promptTokenIds: number[];
  tokenIds: number[];
  text: string;
}

export const stories = JSON.parse(
  readFileSync(path.join(__dirname, '..', 'golden', 'stories.json'), 'utf8'),
) as { prompts: (Reference & { prompt: string })[]; chat: Reference & { messages: never } };
