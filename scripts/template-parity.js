/**
 * Compares chat templates with transformers, for text-parity.js. FOLDER/templates/<name>.json has a
 * `template`, its `specialTokens` and, in `expected`, a { text } or an { error } for each conversation of
 * FOLDER/conversations.json: { messages, kw }, where `kw` has the arguments of render_jinja_template.
 */
'use strict';

const { readdirSync, readFileSync } = require('node:fs');
const path = require('node:path');

const TOKEN = /[ \t\n\r]*(?:([{}[\],:])|("(?:[^"\\]|\\.)*")|([^ \t\n\r{}[\],:"]+))/gy;

/** Parses JSON as Python: 1.0 is a float (a Number object), a long int is exact (a bigint). */
function parseExactly(text) {
  const tokens = [...text.matchAll(TOKEN)];
  let at = 0;
  const isNext = (mark) => tokens[at][1] === mark;
  const items = (close, item) => {
    while (!isNext(close)) {
      item();
      if (isNext(',')) at++;
    }
    at++;
  };
  const value = () => {
    const [, mark, string, scalar] = tokens[at++];
    if (string !== undefined) return JSON.parse(string);
    if (mark === '[') {
      const list = [];
      items(']', () => list.push(value()));
      return list;
    }
    if (mark === '{') {
      const members = [];
      items('}', () => {
        const key = value();
        at++;
        members.push([key, value()]);
      });
      return Object.fromEntries(members);
    }
    if (!/^-?\d/.test(scalar)) return JSON.parse(scalar);
    if (/[.eE]/.test(scalar)) return new Number(scalar);
    return Number.isSafeInteger(Number(scalar)) ? Number(scalar) : BigInt(scalar);
  };
  return value();
}

/** Dates and times, which depend on the run. */
const DATE =
  /\d{1,2} \p{L}{3,9},? \d{4}|\p{L}{3,9} \d{1,2},? \d{4}|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d|星期./gu;

function render({ renderChatTemplate }, { template, specialTokens }, { messages, kw }) {
  const { tools, documents, add_generation_prompt, continue_final_message, ...rest } = kw;
  return renderChatTemplate(template, messages, {
    tools,
    documents,
    addGenerationPrompt: add_generation_prompt,
    continueFinalMessage: continue_final_message,
    chatTemplateKwargs: rest,
    specialTokens,
  });
}

const masked = (text) => (text === undefined ? 'refused' : text.replace(DATE, '<date>'));

/** A tally per template in the folder, made by `newTally`, of rendered texts and refusals. */
function* compareTemplates(newTally, library, folder) {
  const file = path.join(folder, '..', 'conversations.json');
  const conversations = parseExactly(readFileSync(file, 'utf8'));
  for (const name of readdirSync(folder).sort()) {
    if (!name.endsWith('.json')) continue;
    const entry = JSON.parse(readFileSync(path.join(folder, name), 'utf8'));
    const tally = newTally(`templates/${name}`);
    for (const [conversation, { text, error }] of Object.entries(entry.expected)) {
      let ours;
      let refusal = '';
      try {
        ours = render(library, entry, conversations[conversation]);
      } catch (caught) {
        refusal = ` (refused here: ${caught.message})`;
      }
      const note = error === undefined ? refusal : ` (refused there: ${error})`;
      tally.compare(conversation + note, masked(ours), masked(text));
    }
    yield tally;
  }
}

module.exports = { compareTemplates };
