#!/usr/bin/env node
/**
 * Compares tokenizers and chat templates with Hugging Face's Python libraries on the same files.
 *
 *     npm run text-parity -- FOLDER
 *
 * FOLDER/tokenizers/<name>/: a checkpoint's tokenizer.json (tokenizer_config.json, special_tokens_map.json) and
 * expected.json with `cases` of { text, ids, idsWithSpecial, decoded, decodedWithSpecialSkipped } and
 * `randomIds` of { ids, decoded, decodedSkippingSpecial }. Prints the numbers of cases and differences
 * per file, and the first differences; exits with 1 on any. FOLDER/templates/<name>.json and
 * FOLDER/conversations.json: see template-parity.js.
 *
 *     npm run text-parity -- --times FOLDER/tokenizers/<name> [--python python3]
 *
 * times the encoding of prompts of 13 kB, 100 kB and 1 MB compared with Python's `tokenizers`.
 */
'use strict';

const { execFileSync } = require('node:child_process');
const {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { monitorEventLoopDelay } = require('node:perf_hooks');
const { parseArgs } = require('node:util');
const { compareTemplates } = require('./template-parity');

/** Maximum differences shown per file. */
const MAX_SHOWN = 3;

/** Counts comparisons and keeps the first differences. */
class Tally {
  cases = 0;
  differences = 0;
  shown = [];

  constructor(name) {
    this.name = name;
  }

  compare(what, actual, expected) {
    this.cases++;
    const [ours, theirs] = [JSON.stringify(actual), JSON.stringify(expected)];
    if (ours === theirs) return;
    this.differences++;
    if (this.shown.length === MAX_SHOWN) return;
    let at = 0;
    while (ours?.[at] === theirs?.[at]) at++;
    const around = (text) => String(text).slice(Math.max(0, at - 30), at + 60);
    this.shown.push(
      `${what}\n      here:     …${around(ours)}\n      expected: …${around(theirs)}`,
    );
  }

  /** Records a file that cannot be compared. */
  fail(error) {
    this.cases++;
    this.differences++;
    this.shown.push(error.message);
  }

  print() {
    const { name, cases, differences, shown } = this;
    console.log(
      `${name.padEnd(52)} ${String(cases).padStart(7)} ${String(differences).padStart(7)}`,
    );
    for (const difference of shown) console.log(`    ${difference}`);
  }
}

/** The output of an incremental decoder, token by token, and its rest. */
function decodeByStep(tokenizer, ids, options) {
  const decoder = tokenizer.incrementalDecoder(options);
  let text = '';
  for (const id of ids) text += decoder.append([id]);
  return text + decoder.finish();
}

async function compareTokenizer({ Tokenizer }, folder) {
  const tally = new Tally(`tokenizers/${path.basename(folder)}`);
  const expected = JSON.parse(readFileSync(path.join(folder, 'expected.json'), 'utf8'));
  const tokenizer = await Tokenizer.load(folder);
  const kept = { skipSpecialTokens: false };
  for (const { text, ids, idsWithSpecial, decoded, ...rest } of expected.cases) {
    const of = `of ${JSON.stringify(text.slice(0, 60))}`;
    tally.compare(`ids ${of}`, await tokenizer.encode(text, { addSpecialTokens: false }), ids);
    tally.compare(`ids with special tokens ${of}`, await tokenizer.encode(text), idsWithSpecial);
    tally.compare(`text kept ${of}`, await tokenizer.decode(ids, kept), decoded);
    tally.compare(`steps kept ${of}`, decodeByStep(tokenizer, ids, kept), decoded);
    const skipped = rest.decodedWithSpecialSkipped;
    tally.compare(`text ${of}`, await tokenizer.decode(idsWithSpecial), skipped);
    tally.compare(`steps ${of}`, decodeByStep(tokenizer, idsWithSpecial), skipped);
    if (tokenizer.minNumTokens(text) > ids.length) {
      tally.compare(`least tokens ${of}`, tokenizer.minNumTokens(text), ids.length);
    }
  }
  for (const { ids, decoded, decodedSkippingSpecial } of expected.randomIds) {
    const of = `of ${ids.slice(0, 8).join(' ')} …`;
    tally.compare(`text kept ${of}`, await tokenizer.decode(ids, kept), decoded);
    tally.compare(`steps kept ${of}`, decodeByStep(tokenizer, ids, kept), decoded);
    tally.compare(`text ${of}`, await tokenizer.decode(ids), decodedSkippingSpecial);
    tally.compare(`steps ${of}`, decodeByStep(tokenizer, ids), decodedSkippingSpecial);
  }
  await tokenizer.close();
  return tally;
}

/** A tally per tokenizer in the folder. */
async function* compareTokenizers(library, folder) {
  for (const name of readdirSync(folder).sort()) {
    const inside = path.join(folder, name);
    if (!existsSync(path.join(inside, 'expected.json'))) continue;
    const tally = await compareTokenizer(library, inside).catch((error) => {
      const failed = new Tally(`tokenizers/${name}`);
      failed.fail(error);
      return failed;
    });
    yield tally;
  }
}

/** Comparisons by subfolder of FOLDER: `(library, folder)` returns a Tally per file. */
const COMPARISONS = {
  tokenizers: compareTokenizers,
  templates: (library, folder) => compareTemplates((name) => new Tally(name), library, folder),
};

async function compareAll(library, folder) {
  console.log(`${'file'.padEnd(52)} ${'cases'.padStart(7)} ${'differ'.padStart(7)}`);
  const total = new Tally('all');
  for (const [part, compare] of Object.entries(COMPARISONS)) {
    const inside = path.join(folder, part);
    if (!existsSync(inside)) continue;
    for await (const tally of compare(library, inside)) {
      tally.print();
      total.cases += tally.cases;
      total.differences += tally.differences;
    }
  }
  total.print();
  if (total.cases === 0) throw new Error(`${folder} has no tokenizers or templates to compare`);
  return total.differences === 0;
}

const TIMES_PYTHON = `
import json, sys, time
from tokenizers import Tokenizer
start = time.perf_counter()
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.no_truncation(); tokenizer.no_padding()
load = time.perf_counter() - start
def best(text, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        count = len(tokenizer.encode(text, add_special_tokens=False).ids)
        times.append(time.perf_counter() - start)
    return [min(times), count]
texts = json.load(open(sys.argv[2]))
print(json.dumps({"load": load, "texts": [best(text, repeats) for text, repeats in texts]}))
`;

const PARAGRAPH =
  'The lighthouse keeper counted 1,024 ships; none of them stopped. “Why?” she asked — ' +
  'naïve façade, 東京の朝、Привет мир, 🚢🚢.\n    def wait(self, hours=3):\n        return self.tide >= 0.5\n\n';

/** A prompt of the given number of bytes. */
function promptOf(numBytes) {
  const size = Buffer.byteLength(PARAGRAPH);
  let text = '';
  for (let i = 0; i * size < numBytes; i++) text += `${i}. ${PARAGRAPH}`;
  return Buffer.from(text)
    .subarray(0, numBytes)
    .toString()
    .replace(/\ufffd+$/, '');
}

async function compareTimes({ Tokenizer }, folder, python) {
  const sizes = { '13 kB': [13e3, 20], '100 kB': [100e3, 10], '1 MB': [1e6, 3] };
  const texts = Object.values(sizes).map(([size, repeats]) => [promptOf(size), repeats]);
  const temporary = mkdtempSync(path.join(os.tmpdir(), 'text-parity-'));
  let theirs = null;
  try {
    const file = path.join(temporary, 'texts.json');
    writeFileSync(file, JSON.stringify(texts));
    const args = ['-c', TIMES_PYTHON, path.join(folder, 'tokenizer.json'), file];
    theirs = JSON.parse(execFileSync(python, args, { encoding: 'utf8' }));
  } catch (error) {
    console.log(
      `${python} could not be timed: ${error.message.split('\n').at(-2) ?? error.message}`,
    );
  } finally {
    rmSync(temporary, { recursive: true });
  }
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const timed = async (job) => {
    await new Promise((resolve) => setTimeout(resolve, 50));
    delay.reset();
    delay.enable();
    const start = performance.now();
    const result = await job();
    const milliseconds = performance.now() - start;
    delay.disable();
    return { milliseconds, held: delay.max / 1e6, result };
  };
  const row = (cells) => console.log(cells.map((cell) => String(cell).padStart(14)).join(''));
  row(['', 'tokens', 'here, ms', 'Python, ms', 'loop held, ms']);
  const ms = (value) => (value === undefined ? '-' : (1e3 * value).toFixed(1));
  const load = await timed(() => Tokenizer.load(folder));
  row(['load', '', load.milliseconds.toFixed(1), ms(theirs?.load), load.held.toFixed(1)]);
  const tokenizer = load.result;
  let same = true;
  for (const [i, name] of Object.keys(sizes).entries()) {
    const [text, repeats] = texts[i];
    const runs = [];
    for (let run = 0; run < repeats; run++) {
      runs.push(await timed(() => tokenizer.encode(text, { addSpecialTokens: false })));
    }
    const best = Math.min(...runs.map(({ milliseconds }) => milliseconds));
    const held = Math.max(...runs.map((run) => run.held));
    const [seconds, count] = theirs?.texts[i] ?? [];
    const tokens = runs[0].result.length;
    same &&= count === undefined || count === tokens;
    row([name, tokens, best.toFixed(1), ms(seconds), held.toFixed(1)]);
  }
  await tokenizer.close();
  return same;
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      times: { type: 'string' },
      python: { type: 'string', default: 'python3' },
    },
  });
  const library = require('..');
  if (values.times !== undefined) return compareTimes(library, values.times, values.python);
  if (positionals.length !== 1) {
    throw new Error('usage: npm run text-parity -- FOLDER, or --times FOLDER/tokenizers/<name>');
  }
  return compareAll(library, positionals[0]);
}

main().then(
  (same) => {
    process.exitCode = same ? 0 : 1;
  },
  (error) => {
    console.error(error.message);
    process.exitCode = 2;
  },
);
