/**
 * Llama 3.2 and 4: the whole reply is a list of Python calls, `[f(a=1, b="x"), g()]`, maybe between
 * `<|python_start|>` and `<|python_end|>`.
 */
import { openObject } from '../argumentValues';
import type { Cursor, Parsing } from '../cursor';
import { pythonValue } from '../pythonValue';
import type { ReplySink } from '../replySink';
import { listOf, restIsContent, tagOf, type ToolCallFormat } from '../toolFormat';

const START = '<|python_start|>';
const END = '<|python_end|>';
const NAME = /^[A-Za-z_][\w.-]*$/;

export const pythonic: ToolCallFormat = {
  names: ['pythonic', 'llama4_pythonic'],
  toolNames: NAME,
  detects: (template) =>
    template.includes(START) || /func_name1\s*\(\s*params_name1\s*=/.test(template),
  markers: [START, END],
  *parse(cursor, sink) {
    cursor.setMark();
    yield* cursor.skipSpace();
    yield* cursor.takes(START);
    yield* cursor.skipSpace();
    const isList = yield* cursor.takes('[');
    if (!isList || !(yield* pythonCalls(cursor, sink))) sink.content(cursor.markedText);
    cursor.releaseMark();
    yield* restIsContent(cursor, sink);
  },
  syntax: (settings) => {
    const calls = settings.tools.map(({ name, parameters }) =>
      tagOf(settings, `${name}(`, [{ type: 'pythonic_arguments', json_schema: parameters }], ')'),
    );
    return {
      tags: [tagOf(settings, '[', [listOf(calls, ', ', settings.isParallel)], ']')],
      isList: true,
      triggers: ['['],
      separator: '',
      isWholeReply: true,
    };
  },
};

/** Returns whether a call began. */
function* pythonCalls(cursor: Cursor, sink: ReplySink): Parsing<boolean> {
  for (let hasCall = false; ; hasCall = true) {
    yield* cursor.skipSpace();
    if (hasCall && (yield* cursor.takes(']'))) {
      yield* cursor.skipSpace();
      yield* cursor.takes(END);
      return true;
    }
    if (hasCall && (yield* cursor.takes(','))) yield* cursor.skipSpace();
    const name = yield* cursor.textUntil(['(', ']', '\n']);
    const called = name.text;
    if (name.stop !== '(' || !NAME.test(called)) return hasCall;
    sink.beginCall(called);
    if (!(yield* callArguments(cursor, sink))) return true;
  }
}

/** Returns whether the arguments have an end. */
function* callArguments(cursor: Cursor, sink: ReplySink): Parsing<boolean> {
  const object = openObject(sink);
  for (;;) {
    yield* cursor.skipSpace();
    if (yield* cursor.takes(')')) break;
    yield* cursor.takes(',');
    const key = yield* cursor.textUntil(['=', ')']);
    if (key.stop !== '=') return false;
    const value = yield* pythonValue(cursor);
    if (value === null) return false;
    object.add(key.text.trim(), value);
  }
  object.close();
  return true;
}
