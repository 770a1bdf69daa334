import { readFileSync } from 'node:fs';
import path from 'node:path';
import { CheckpointError, InvalidRequestError } from '../../lib/errors';
import { IncrementalDetokenizer } from '../../lib/tokenizer/detokenizer';
import { type DecodeOptions, type EncodeOptions, Tokenizer } from '../../lib/tokenizer/tokenizer';
import { folderWith } from '../support/folder';

/** Recorded from Hugging Face's tokenizers and transformers by make.py. */
interface Expected {
  vocabSize: number;
  bosTokenId: number | null;
  eosTokenId: number;
  encode: { text: string; ids: number[]; withSpecial: number[] }[];
  decode: { ids: number[]; text: string; withSpecial: string }[];
  stream: { ids: number[]; deltas: string[] }[];
  chat: {
    messages: { role: string; content: string }[];
    addGenerationPrompt: boolean;
    text?: string;
    ids?: number[];
    error?: string;
  }[];
}

const recorded = (name: string, file: string) =>
  readFileSync(path.join(__dirname, name, file), 'utf8');

describe.each(['byte-bpe', 'nfc-bpe', 'sentencepiece'])('Tokenizer of %s', (name) => {
  const expected = JSON.parse(recorded(name, 'expected.json')) as Expected;
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    tokenizer = await Tokenizer.load(path.join(__dirname, name));
  });

  it('has the vocabulary size, BOS and EOS ids of the reference', () => {
    const { vocabSize, bosTokenId, eosTokenId } = expected;
    expect(tokenizer).toMatchObject({ vocabSize, bosTokenId, eosTokenId });
  });

  it.each(expected.encode)('encodes $text', async ({ text, ids, withSpecial }) => {
    expect(await tokenizer.encode(text, { addSpecialTokens: false })).toEqual(ids);
    expect(await tokenizer.encode(text)).toEqual(withSpecial);
  });

  it.each(expected.decode)('decodes to $text', async ({ ids, text, withSpecial }) => {
    expect(await tokenizer.decode(ids)).toBe(text);
    expect(await tokenizer.decode(Int32Array.from(ids), { skipSpecialTokens: false })).toBe(
      withSpecial,
    );
  });

  it.each(expected.stream)('decodes $ids token by token', ({ ids, deltas }) => {
    const detokenizer = new IncrementalDetokenizer(tokenizer);
    let text = '';
    let reference = '';
    ids.forEach((id, i) => {
      const delta = detokenizer.append([id]);
      expect(delta).not.toContain('\ufffd');
      text += delta;
      reference += deltas[i];
      // May be ahead of the reference, or behind it in a run of byte tokens, which is not final.
      if (name !== 'sentencepiece') expect(text.startsWith(reference)).toBe(true);
    });
    expect(text + detokenizer.finish()).toBe(reference);
  });

  it.each(expected.chat)(
    'renders and encodes $messages',
    async ({ messages, error, ids, ...options }) => {
      if (error === undefined) {
        expect(await tokenizer.applyChatTemplate(messages, options)).toEqual(ids);
      } else {
        const refused = () => tokenizer.applyChatTemplate(messages, options);
        await expect(refused()).rejects.toThrow(InvalidRequestError);
        await expect(refused()).rejects.toThrow(error);
      }
    },
  );
});

describe('Tokenizer', () => {
  const TOKENIZER = recorded('byte-bpe', 'tokenizer.json');
  let tokenizer: Tokenizer;
  let idOf: (text: string) => Promise<number>;

  beforeAll(async () => {
    tokenizer = await Tokenizer.load(path.join(__dirname, 'byte-bpe'));
    idOf = async (text) => (await tokenizer.encode(text, { addSpecialTokens: false }))[0];
  });

  /** The error message of loading a folder with these files, and the name of the file at fault. */
  async function loadError(files: Record<string, unknown>) {
    const error: unknown = await folderWith(files)
      .then((folder) => Tokenizer.load(folder))
      .catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(CheckpointError);
    const { file, message } = error as CheckpointError;
    expect(message).toContain(file);
    return { file: path.basename(file), message };
  }

  it('decodes an empty list, and ids without a token, to an empty string', async () => {
    expect(await tokenizer.decode([])).toBe('');
    expect(await tokenizer.decode([tokenizer.vocabSize, 1e9, -1])).toBe('');
    expect(await tokenizer.decode([tokenizer.vocabSize, await idOf('a'), 1e9])).toBe('a');
    expect(tokenizer.idToToken(tokenizer.vocabSize)).toBe('');
  });

  it('ignores clean_up_tokenization_spaces', async () => {
    expect(await tokenizer.decode(await tokenizer.encode("a , b . do n't !"))).toBe(
      "a , b . do n't !",
    );
  });

  it("returns a token's text within a text", async () => {
    expect(tokenizer.idToToken(await idOf(' the'))).toBe(' the');
    expect(tokenizer.idToToken(await idOf('<|end|>'))).toBe('<|end|>');
    expect(tokenizer.idToToken(await idOf('猫'))).toBe('\ufffd');
    const sentencepiece = await Tokenizer.load(path.join(__dirname, 'sentencepiece'));
    const [the] = await sentencepiece.encode('the', { addSpecialTokens: false });
    expect(await sentencepiece.decode([the])).toBe('the');
    expect(sentencepiece.idToToken(the)).toBe(' the');
  });

  it('returns the text that a token appends, with the character that it completes', async () => {
    const ids = await tokenizer.encode('猫', { addSpecialTokens: false });
    expect(tokenizer.textAfter(ids.slice(0, -1), ids[ids.length - 1])).toBe('猫');
    expect(tokenizer.textAfter([], ids[0])).toBe('\ufffd');
    expect(tokenizer.textAfter(await tokenizer.encode('a'), await idOf(' the'))).toBe(' the');
  });

  it("returns a token's bytes, which may be part of a character", async () => {
    const ids = await tokenizer.encode('a 猫', { addSpecialTokens: false });
    const bytes = ids.map((id) => tokenizer.tokenBytes(id));
    expect(Buffer.concat(bytes).toString()).toBe('a 猫');
    expect(tokenizer.tokenBytes(tokenizer.vocabSize)).toHaveLength(0);
    const sentencepiece = await Tokenizer.load(path.join(__dirname, 'sentencepiece'));
    const [space, ...cat] = await sentencepiece.encode('猫', { addSpecialTokens: false });
    const spelled = [space, ...cat].map((id) => sentencepiece.tokenBytes(id));
    expect(Buffer.concat(spelled).toString()).toBe(' 猫');
    expect(cat).toHaveLength(3);
  });

  it('keeps U+FEFF of byte tokens', async () => {
    const text = '\ufeffa\ufeff';
    const ids = await tokenizer.encode(text, { addSpecialTokens: false });
    expect(await tokenizer.decode(ids)).toBe(text);
    const decoder = tokenizer.incrementalDecoder();
    expect(ids.map((id) => decoder.append([id])).join('')).toBe(text);
  });

  it('reads special tokens from tokenizer.json, and their names from tokenizer_config.json', async () => {
    const json = JSON.parse(TOKENIZER) as { added_tokens: { content: string; special: boolean }[] };
    json.added_tokens.forEach((token) => (token.special = token.content === '<|start|>'));
    const folder = await folderWith({
      'tokenizer.json': json,
      'tokenizer_config.json': { eos_token: '<|end|>' },
    });
    const loaded = await Tokenizer.load(folder);
    expect(loaded.isSpecial(await idOf('<|start|>'))).toBe(true);
    expect(loaded.isSpecial(await idOf('<|end|>'))).toBe(true);
    expect(loaded.isSpecial(await idOf('<|begin|>'))).toBe(false);
  });

  it('needs no tokenizer_config.json', async () => {
    const loaded = await Tokenizer.load(await folderWith({ 'tokenizer.json': TOKENIZER }));
    expect(await loaded.encode('the tide')).toEqual(await tokenizer.encode('the tide'));
    expect(loaded).toMatchObject({ bosTokenId: null, eosTokenId: null });
  });

  it('treats null options as missing', async () => {
    const options = null as unknown as undefined;
    expect(await tokenizer.encode('Hi', options)).toEqual(await tokenizer.encode('Hi'));
    const ids = await tokenizer.encode('Hi');
    expect(await tokenizer.decode(ids, options)).toBe(await tokenizer.decode(ids));
  });

  it.each<[string, () => Promise<unknown>]>([
    [
      'unknown option add_special_tokens; did you mean addSpecialTokens?',
      () => tokenizer.encode('x', { add_special_tokens: false } as EncodeOptions),
    ],
    [
      "addSpecialTokens is 'no'; it must be true or false",
      () => tokenizer.encode('x', { addSpecialTokens: 'no' } as unknown as EncodeOptions),
    ],
    [
      'unknown option skipSpecialToken; did you mean skipSpecialTokens?',
      () => tokenizer.decode([1], { skipSpecialToken: false } as DecodeOptions),
    ],
    [
      'tokenIds is null; it must be a list of integers',
      () => tokenizer.decode(null as unknown as number[]),
    ],
    [
      "texts is 'abc'; it must be a list of strings",
      () => tokenizer.encodeBatch('abc' as unknown as string[]),
    ],
  ])('rejects with: %s', async (message, call) => {
    await expect(call()).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: expect.stringContaining(message) as string,
    });
  });

  describe('rejects', () => {
    it.each([
      ['a folder without tokenizer.json', {}, 'the file is missing'],
      ['a tokenizer.json that is not JSON', { 'tokenizer.json': '{' }, 'not JSON'],
      ['one without a model', { 'tokenizer.json': {} }, 'rejects it: Model missing'],
      ['one with an unknown model', { 'tokenizer.json': { model: { type: 'X' } } }, 'rejects it: '],
      [
        'one with a missing field of a decoder',
        { 'tokenizer.json': { decoder: { type: 'Sequence', decoders: [{ type: 'CTC' }] } } },
        'rejects it: missing field `pad_token`',
      ],
    ])('%s', async (_, files, message) => {
      const error = await loadError(files);
      expect(error.file).toBe('tokenizer.json');
      expect(error.message).toContain(message);
    });

    it.each([
      [{ bos_token: 7 }, 'bos_token is 7; it must be a string'],
      [{ eos_token: { text: 'x' } }, "eos_token is { text: 'x' }"],
      [{ chat_template: 7 }, 'chat_template is 7'],
      [{ chat_template: [{ name: 'rag' }] }, 'a list of { name, template }'],
      [{ chat_template: { rag: 7 } }, 'an object of templates by name'],
      ['{', 'not JSON'],
    ])('a tokenizer_config.json of %j', async (config, message) => {
      const error = await loadError({
        'tokenizer.json': TOKENIZER,
        'tokenizer_config.json': config,
      });
      expect(error.file).toBe('tokenizer_config.json');
      expect(error.message).toContain(message);
    });
  });

  describe('with a chat template', () => {
    const MESSAGES = [{ role: 'user', content: 'Hello' }];
    const load = async (files: Record<string, unknown>) =>
      Tokenizer.load(await folderWith({ 'tokenizer.json': TOKENIZER, ...files }));

    it('prefers chat_template.jinja', async () => {
      const loaded = await load({
        'chat_template.jinja': '{{ messages[0].content }}!',
        'tokenizer_config.json': { chat_template: 'not this one' },
      });
      expect(await loaded.decode(await loaded.applyChatTemplate(MESSAGES))).toBe('Hello!');
    });

    it("adds no special tokens to the template's", async () => {
      const ids = await tokenizer.applyChatTemplate(MESSAGES);
      expect(ids.filter((id) => id === tokenizer.bosTokenId)).toHaveLength(1);
    });

    it('passes other fields of a message to the template', async () => {
      const loaded = await load({ 'chat_template.jinja': '{{ messages[0].name }}' });
      const messages = [{ ...MESSAGES[0], name: 'Mira' }];
      expect(await loaded.decode(await loaded.applyChatTemplate(messages))).toBe('Mira');
    });

    it('explains what to do without one', async () => {
      const loaded = await load({});
      await expect(loaded.applyChatTemplate(MESSAGES)).rejects.toThrow(InvalidRequestError);
      await expect(loaded.applyChatTemplate(MESSAGES)).rejects.toThrow(
        /no chat template.*use generate/,
      );
    });

    it("reports the template's raise_exception", async () => {
      const refused = () => tokenizer.applyChatTemplate([{ role: 'judge', content: 'x' }]);
      await expect(refused()).rejects.toThrow(InvalidRequestError);
      await expect(refused()).rejects.toThrow('there is no role judge');
    });

    it('names the file of one that does not compile', async () => {
      const loaded = await load({ 'chat_template.jinja': '{% for %}' });
      await expect(loaded.applyChatTemplate(MESSAGES)).rejects.toThrow(CheckpointError);
      await expect(loaded.applyChatTemplate(MESSAGES)).rejects.toThrow(
        /chat_template.jinja: the chat template/,
      );
    });

    it.each([
      [[], 'messages is []'],
      ['Hello', "messages is 'Hello'"],
      [[null], 'messages[0] is null'],
    ])('rejects the messages %j', async (messages, message) => {
      const refused = () => tokenizer.applyChatTemplate(messages as unknown as typeof MESSAGES);
      await expect(refused()).rejects.toThrow(InvalidRequestError);
      await expect(refused()).rejects.toThrow(message);
    });
  });
});
