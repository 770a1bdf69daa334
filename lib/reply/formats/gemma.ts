/**
 * Gemma 4: `<|tool_call>call:NAME{KEY:<|"|>TEXT<|"|>,KEY:1}<tool_call|>`; FunctionGemma writes
 * `<start_function_call>`, `<escape>` and `<end_function_call>`.
 */
import { openObject } from '../argumentValues';
import type { Cursor, Parsing } from '../cursor';
import { pythonLiteral } from '../pythonValue';
import { BARE_NAMES, callsWithin, tagOf, type ToolCallFormat, triggerOf } from '../toolFormat';

interface Marks {
  open: string;
  close: string;
  quote: string;
}

const DEPTH = 100;

function gemmaFormat(names: readonly string[], { open, close, quote }: Marks): ToolCallFormat {
  return {
    names,
    toolNames: BARE_NAMES,
    detects: (template) => template.includes(open) && template.includes(quote),
    markers: [open, close, quote],
    parse: (cursor, sink) =>
      callsWithin(cursor, sink, [open], function* () {
        if (!(yield* cursor.takes('call:'))) return false;
        const name = yield* cursor.textUntil(['{', close]);
        if (name.stop !== '{') return false;
        sink.beginCall(name.text.trim());
        const object = openObject(sink);
        for (;;) {
          yield* cursor.skipSpace();
          if (yield* cursor.takes('}')) break;
          yield* cursor.takes(',');
          const key = yield* keyOf(cursor, quote);
          const value = key === null ? null : yield* valueOf(cursor, quote, 0);
          // Arguments that break off stay open.
          if (key === null || value === null) return true;
          object.add(key, value);
        }
        object.close();
        yield* cursor.takes(close);
        return true;
      }),
    syntax: (settings) => ({
      tags: settings.tools.map(({ name, parameters }) =>
        tagOf(
          settings,
          `${open}call:${name}{`,
          [{ type: 'gemma_arguments', json_schema: parameters, quote: triggerOf(settings, quote) }],
          `}${close}`,
        ),
      ),
      isList: false,
      triggers: [triggerOf(settings, open)],
      separator: '',
      isWholeReply: false,
    }),
  };
}

function* keyOf(cursor: Cursor, quote: string): Parsing<string | null> {
  yield* cursor.skipSpace();
  let key: string;
  if (yield* cursor.takes(quote)) {
    key = (yield* cursor.textUntil([quote])).text;
    yield* cursor.skipSpace();
    return (yield* cursor.takes(':')) ? key : null;
  }
  if ((yield* cursor.peek()) === '"') {
    const written = yield* cursor.jsonString();
    yield* cursor.skipSpace();
    return (yield* cursor.takes(':')) ? written : null;
  }
  const { text, stop } = yield* cursor.textUntil([':']);
  return stop === null ? null : text.trim();
}

/** A value as JSON; null if it has no end. */
function* valueOf(cursor: Cursor, quote: string, depth: number): Parsing<string | null> {
  if (depth > DEPTH) return null;
  yield* cursor.skipSpace();
  if (yield* cursor.takes(quote)) {
    const { text, stop } = yield* cursor.textUntil([quote]);
    return stop === null ? null : JSON.stringify(text);
  }
  const parts: string[] = [];
  if (yield* cursor.takes('[')) {
    for (;;) {
      yield* cursor.skipSpace();
      if (yield* cursor.takes(']')) return `[${parts.join(', ')}]`;
      yield* cursor.takes(',');
      const value = yield* valueOf(cursor, quote, depth + 1);
      if (value === null) return null;
      parts.push(value);
    }
  }
  if (yield* cursor.takes('{')) {
    for (;;) {
      yield* cursor.skipSpace();
      if (yield* cursor.takes('}')) return `{${parts.join(', ')}}`;
      yield* cursor.takes(',');
      const key = yield* keyOf(cursor, quote);
      const value = key === null ? null : yield* valueOf(cursor, quote, depth + 1);
      if (key === null || value === null) return null;
      parts.push(`${JSON.stringify(key)}: ${value}`);
    }
  }
  let raw = '';
  if (!(yield* cursor.jsonValue((text) => (raw += text)))) return null;
  try {
    JSON.parse(raw);
    return raw;
  } catch {
    return pythonLiteral(raw) ?? JSON.stringify(raw);
  }
}

export const gemma4 = gemmaFormat(['gemma4'], {
  open: '<|tool_call>',
  close: '<tool_call|>',
  quote: '<|"|>',
});

export const functionGemma = gemmaFormat(['functiongemma'], {
  open: '<start_function_call>',
  close: '<end_function_call>',
  quote: '<escape>',
});
