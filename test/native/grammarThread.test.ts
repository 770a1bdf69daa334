/** The native grammar thread: what it answers, and how its objects end. */
import { native } from '../../lib/native';
import type { NativeGrammarThread } from '../../lib/native/grammarThread';
import { compile, TestVocabulary } from '../grammar/support';

const MASKED = 0;
const ENDED = 1;
const REJECTED = 2;
const DEAD_END = 3;
const TOO_COMPLEX = 4;

const vocabulary = new TestVocabulary(
  ['', 'a', 'b', 'ab', 'c', '1'].map((text) => new Uint8Array(Buffer.from(text))),
);
const [END, A, B, AB, C] = [0, 1, 2, 3, 4];

const threads: NativeGrammarThread[] = [];

async function start(regex: string, allowedTokenIds: number[] = []): Promise<NativeGrammarThread> {
  const thread = new (native().GrammarThread)('grammars');
  threads.push(thread);
  await thread.setVocabulary(vocabulary.bytes, vocabulary.offsets, vocabulary.size);
  await thread.addGrammar(0, compile({ regex }));
  thread.addMatcher(0, 0, Int32Array.of(END), Int32Array.from(allowedTokenIds));
  return thread;
}

afterAll(() => Promise.all(threads.map((thread) => thread.shutdown())));

/** The allowed tokens and the status after more tokens of matcher 0. */
async function next(thread: NativeGrammarThread, ...tokens: number[]): Promise<[number[], number]> {
  const mask = new Int32Array(1);
  const statuses = new Int32Array(1);
  await thread.fill(
    Int32Array.of(0),
    Int32Array.of(0, tokens.length),
    Int32Array.from(tokens),
    mask,
    statuses,
  );
  return [[0, 1, 2, 3, 4, 5].filter((id) => (mask[0] >> id) & 1), statuses[0]];
}

test('a mask has the tokens that may follow, and the end where the text may end', async () => {
  const thread = await start('a(?:bc?)?');
  expect(await next(thread)).toEqual([[A, AB], MASKED]);
  expect(await next(thread, A)).toEqual([[END, B], MASKED]);
  expect(await next(thread, B)).toEqual([[END, C], MASKED]);
  expect(await next(thread, C)).toEqual([[END], MASKED]);
  expect((await next(thread, END))[1]).toBe(ENDED);
});

test('several tokens are read at once', async () => {
  const thread = await start('[ab]{4}c');
  expect(await next(thread, A, B, AB)).toEqual([[C], MASKED]);
});

test('a token that the grammar does not allow is reported, also later', async () => {
  const thread = await start('ab');
  expect((await next(thread, B))[1]).toBe(REJECTED);
  expect((await next(thread, A))[1]).toBe(REJECTED);
});

test('an early end is reported', async () => {
  const thread = await start('ab');
  expect((await next(thread, A, END))[1]).toBe(REJECTED);
});

test('a text that no token continues is a dead end', async () => {
  const thread = await start('a(?:é|x)');
  expect((await next(thread, A))[1]).toBe(DEAD_END);
  const limited = await start('ab', [C]);
  expect((await next(limited))[1]).toBe(DEAD_END);
});

test('a grammar with too many ways to read a text is reported', async () => {
  const thread = await start('(?:(?:a{1,900}){1,900}){1,900}c');
  const mask = new Int32Array(1);
  const statuses = new Int32Array(1);
  const text = new Int32Array(400).fill(A);
  await thread.fill(Int32Array.of(0), Int32Array.of(0, text.length), text, mask, statuses);
  expect(statuses[0]).toBe(TOO_COMPLEX);
  expect(mask[0]).toBe(-1);
});

test('an automaton that exceeds its memory begins anew, with the same answers', async () => {
  const numTokens = 50_000;
  const thread = await start(`[ab]{${numTokens}}c?`);
  const batch = new Array<number>(1000).fill(A);
  for (let i = 1000; i < numTokens; i += 1000) {
    expect(await next(thread, ...batch)).toEqual([[A, B, AB], MASKED]);
  }
  expect(await next(thread, ...batch.slice(1))).toEqual([[A, B], MASKED]);
  expect(await next(thread, A)).toEqual([[END, C], MASKED]);
});

test('grammars that rest keep little, whatever their last mask took', async () => {
  const letters = Array.from('abcdefghijklmno');
  const longer = (texts: string[]) => texts.flatMap((text) => letters.map((one) => text + one));
  const lengths = [letters];
  while (lengths.length < 4) lengths.push(longer(lengths[lengths.length - 1]));
  // After every token the text is to be closed in another way: each is a state of its own.
  const rules = letters.map((one, i) => `"${one}" root "${i}"`).join(' | ');
  const large = new TestVocabulary(lengths.flat().map((text) => new Uint8Array(Buffer.from(text))));
  const thread = new (native().GrammarThread)('grammars');
  threads.push(thread);
  await thread.setVocabulary(large.bytes, large.offsets, large.size);
  const before = process.memoryUsage().rss;
  for (let id = 0; id < 12; id++) {
    await thread.addGrammar(id, compile({ grammar: `root ::= ${rules} | "."` }));
    thread.addMatcher(id, id, new Int32Array(0), new Int32Array(0));
    const mask = new Int32Array(Math.ceil(large.size / 32));
    const statuses = new Int32Array(1);
    await thread.fill(Int32Array.of(id), Int32Array.of(0, 0), new Int32Array(0), mask, statuses);
    expect(statuses[0]).toBe(MASKED);
  }
  expect((process.memoryUsage().rss - before) / 2 ** 20).toBeLessThan(450);
});

test('matchers of one grammar are independent, and outlive its number', async () => {
  const thread = await start('a[bc]');
  thread.addMatcher(1, 0, Int32Array.of(END), new Int32Array(0));
  thread.removeGrammar(0);
  expect(await next(thread, A)).toEqual([[B, C], MASKED]);
  const mask = new Int32Array(2);
  const statuses = new Int32Array(2);
  await thread.fill(Int32Array.of(0, 1), Int32Array.of(0, 1, 1), Int32Array.of(B), mask, statuses);
  expect([...mask]).toEqual([1 << END, (1 << A) | (1 << AB)]);
  thread.removeMatcher(0);
  await expect(next(thread)).rejects.toThrow('there is no matcher 0');
});

test.each([
  [[0, 0, 0], /it has no instructions/],
  [[1, 0, 0, 0, 0, 0, 0, 0], /operand out of range/],
  [[1, 0, 0, 9, 0, 0, 0, 0], /operand out of range/],
  [[1, 0, 0], /words instead of/],
  [[-1, 0, 0], /a count is negative/],
])('the program %j is refused', async (words, message) => {
  const thread = await start('a');
  await expect(thread.addGrammar(1, Int32Array.from(words))).rejects.toThrow(message);
});

test('a vocabulary whose offsets do not fit is refused', async () => {
  const thread = await start('a');
  const set = thread.setVocabulary(new Uint8Array(2), Uint32Array.of(0, 3), 1);
  await expect(set).rejects.toMatchObject({ code: 'INVALID_STATE' });
});

test('after shutdown calls reject', async () => {
  const thread = await start('a');
  await thread.shutdown();
  await expect(thread.addGrammar(1, compile({ regex: 'a' }))).rejects.toMatchObject({
    code: 'SHUT_DOWN',
  });
  await thread.shutdown();
});
