/**
 * Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, or, newer, for each call
 * `[TOOL_CALLS]NAME[ARGS]{...}` or `[TOOL_CALLS]NAME{...}`, with `[CALL_ID]ID` behind the name at times.
 */
import { randomBytes } from 'node:crypto';
import {
  BARE_NAMES,
  callsWithin,
  constant,
  jsonCalls,
  jsonOf,
  listOf,
  tagOf,
  type ToolCallFormat,
  triggerOf,
} from '../toolFormat';

const OPEN = '[TOOL_CALLS]';
const ARGS = '[ARGS]';
const CALL_ID = '[CALL_ID]';
/** Length of an id, which Mistral's templates check. */
const ID_LENGTH = 9;

/** Whether the template writes a list of calls. */
const hasList = (template: string) =>
  !template.includes(ARGS) && /\[TOOL_CALLS\] ?\[|\[TOOL_CALLS\][^]{0,80}tojson/.test(template);

export const mistral: ToolCallFormat = {
  names: ['mistral'],
  toolNames: BARE_NAMES,
  detects: (template) => template.includes(OPEN),
  markers: [OPEN, ARGS, CALL_ID],
  makeId: () => randomBytes(ID_LENGTH).toString('hex').slice(0, ID_LENGTH),
  parse: (cursor, sink) =>
    callsWithin(cursor, sink, [OPEN], function* () {
      yield* cursor.skipSpace();
      if (yield* cursor.takes('[')) {
        yield* cursor.skipSpace();
        return yield* jsonCalls(cursor, sink);
      }
      const name = yield* cursor.textUntil(['{', CALL_ID, ARGS, OPEN]);
      if (name.text.trim() === '' || name.stop === null || name.stop === OPEN) return false;
      let { stop } = name;
      if (stop === CALL_ID)
        ({ stop } = { stop: (yield* cursor.textUntil([ARGS, '{'])).stop ?? '' });
      sink.beginCall(name.text.trim());
      if (stop === '{') cursor.stepBack(1);
      yield* cursor.skipSpace();
      yield* cursor.jsonValue((text) => sink.arguments(text));
      return true;
    }),
  syntax: (settings) => {
    const { tools, isParallel, template } = settings;
    const triggers = [triggerOf(settings, OPEN)];
    if (!hasList(template)) {
      const args = template.includes(ARGS) ? ARGS : '';
      const tags = tools.map((tool) =>
        tagOf(settings, `${OPEN}${tool.name}${args}`, [jsonOf(tool)], ''),
      );
      return { tags, isList: false, triggers, separator: '', isWholeReply: false };
    }
    const calls = tools.map((tool) =>
      tagOf(
        settings,
        `{"name": ${JSON.stringify(tool.name)}, "arguments": `,
        [jsonOf(tool), constant('}')],
        '',
      ),
    );
    const space = template.includes(`${OPEN} [`) ? ' ' : '';
    const list = tagOf(settings, `${OPEN}${space}[`, [listOf(calls, ', ', isParallel)], ']');
    return { tags: [list], isList: true, triggers, separator: '', isWholeReply: false };
  },
};
