/** POST /tokenize and /detokenize, as vLLM has them. */
import type { Tokenizer } from '../tokenizer/tokenizer';
import { CHAT_PROMPT_FIELDS, chatOptionsOf, messagesOf } from './chatFields';
import type { Exchange } from './exchange';
import { badRequest, notSupported } from './httpError';
import { jsonInPieces, jsonResponse, LazyList } from './jsonResponse';
import { flagOf } from './samplingFields';
import type { ServedModel } from './servedModels';

export const TOKENIZE_FIELDS: readonly string[] = [
  ...CHAT_PROMPT_FIELDS,
  'model',
  'prompt',
  'add_special_tokens',
  'return_token_strs',
];
export const DETOKENIZE_FIELDS: readonly string[] = ['model', 'tokens'];

/** Throws HttpError if the model has none. */
export function tokenizerOf({ llm, name }: ServedModel): Tokenizer {
  if (llm.tokenizer !== null) return llm.tokenizer;
  throw notSupported('model', `${name} has no tokenizer`);
}

export async function tokenize({ fields, model }: Exchange): Promise<Response> {
  const tokenizer = tokenizerOf(model);
  const tokens = await encode(fields, tokenizer, model);
  const strings = flagOf(fields, 'return_token_strs')
    ? new LazyList(tokens.length, (start, end) =>
        tokens.slice(start, end).map((tokenId) => tokenizer.idToToken(tokenId)),
      )
    : null;
  return jsonInPieces({
    count: tokens.length,
    max_model_len: model.llm.engine.config.model.maxModelLen,
    tokens: new LazyList(tokens.length, (start, end) => tokens.slice(start, end)),
    token_strs: strings,
  });
}

async function encode(
  fields: Exchange['fields'],
  tokenizer: Tokenizer,
  { llm }: ServedModel,
): Promise<number[]> {
  const { prompt } = fields;
  if (prompt === undefined)
    return tokenizer.applyChatTemplate(messagesOf(fields), chatOptionsOf(fields));
  const { maxPromptLength } = llm.engine.config.limits;
  if (typeof prompt !== 'string' || prompt.length > maxPromptLength) {
    throw badRequest(`prompt must be a text of at most ${maxPromptLength} characters`, 'prompt');
  }
  const addSpecialTokens =
    fields.add_special_tokens == null || flagOf(fields, 'add_special_tokens');
  return tokenizer.encode(prompt, { addSpecialTokens });
}

export async function detokenize({ fields, model }: Exchange): Promise<Response> {
  const { tokens } = fields;
  if (!Array.isArray(tokens)) throw badRequest('tokens must be a list of token ids', 'tokens');
  const prompt = await tokenizerOf(model).decode(tokens as number[], { skipSpecialTokens: false });
  return jsonResponse({ prompt });
}
