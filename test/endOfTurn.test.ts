/** A chat model ends its turn whichever of its files names the EOS; the folder contains links. */
import { readdirSync } from 'node:fs';
import { symlink } from 'node:fs/promises';
import path from 'node:path';
import { type EngineArgs, LLM, SamplingParams } from '../lib';
import { readJsonObject } from '../lib/config/jsonFile';
import { folderWith } from './support/folder';
import { stories } from './support/stories';

const MODEL = path.join(__dirname, '..', 'models', 'stories');
const END_OF_TURN = 2;
const { messages, tokenIds, text } = stories.chat;

/** The small model with these EOS tokens in its three files; null for none. */
async function modelWith(config: unknown, generation: unknown, eosToken: unknown) {
  const json = (name: string) => readJsonObject(path.join(MODEL, name));
  const folder = await folderWith({
    'config.json': { ...(await json('config.json')), eos_token_id: config },
    'generation_config.json': {
      ...(await json('generation_config.json')),
      eos_token_id: generation,
    },
    'tokenizer_config.json': { ...(await json('tokenizer_config.json')), eos_token: eosToken },
  });
  const own = readdirSync(folder);
  for (const name of readdirSync(MODEL).filter((each) => !own.includes(each))) {
    await symlink(path.join(MODEL, name), path.join(folder, name));
  }
  return folder;
}

async function answer(model: string, args: EngineArgs = {}) {
  const llm = await LLM.create({ model, device: 'cpu', dtype: 'float32', ...args });
  try {
    const params = new SamplingParams({ temperature: 0, maxTokens: tokenIds.length + 5 });
    const [{ outputs }] = await llm.chat(messages, params);
    return outputs[0];
  } finally {
    await llm.shutdown();
  }
}

test.each<[string, unknown, unknown, unknown]>([
  ['config.json', END_OF_TURN, 1, '<|end_of_text|>'],
  ['generation_config.json', 1, [1, END_OF_TURN], '<|end_of_text|>'],
  ['the tokenizer', 1, 1, '<|end_of_turn|>'],
  ['the tokenizer alone, by an object', null, null, { content: '<|end_of_turn|>' }],
])('a turn ends if only %s names the EOS', async (_, ...ends) => {
  const output = await answer(await modelWith(...ends));
  expect(output).toMatchObject({ tokenIds, text, finishReason: 'stop' });
});

test('a turn does not end with ignoreEos', async () => {
  const output = await answer(await modelWith(END_OF_TURN, END_OF_TURN, null), { eosTokenIds: [] });
  expect(output.finishReason).toBe('length');
  expect(output.tokenIds.slice(0, tokenIds.length)).toEqual(tokenIds);
});
