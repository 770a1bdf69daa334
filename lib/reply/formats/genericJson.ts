/**
 * For models whose template has no notation of calls: the whole reply is a list
 * `[{"name": ..., "parameters": {...}}]`, as vLLM asks for with `required`. Free text has no calls.
 */
import {
  constant,
  jsonCalls,
  jsonOf,
  listOf,
  restIsContent,
  tagOf,
  type ToolCallFormat,
} from '../toolFormat';

export const genericJson: ToolCallFormat = {
  names: ['json'],
  detects: () => false,
  markers: [],
  *parse(cursor, sink) {
    cursor.setMark();
    yield* cursor.skipSpace();
    const isList = yield* cursor.takes('[');
    if (!isList || !(yield* jsonCalls(cursor, sink))) sink.content(cursor.markedText);
    cursor.releaseMark();
    yield* restIsContent(cursor, sink);
  },
  syntax: (settings) => {
    const calls = settings.tools.map((tool) =>
      tagOf(
        settings,
        `{"name": ${JSON.stringify(tool.name)}, "parameters": `,
        [jsonOf(tool), constant('}')],
        '',
      ),
    );
    return {
      tags: [tagOf(settings, '[', [listOf(calls, ', ', settings.isParallel)], ']')],
      isList: true,
      triggers: ['[{"name": '],
      separator: '',
      isWholeReply: true,
    };
  },
};
