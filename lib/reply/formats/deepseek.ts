/**
 * DeepSeek: V3 and R1 write `function<｜tool▁sep｜>NAME`, a block of JSON, V3.1 `NAME<｜tool▁sep｜>{...}`, each
 * between `<｜tool▁call▁begin｜>` and `<｜tool▁call▁end｜>`, all between `<｜tool▁calls▁begin｜>` and
 * `<｜tool▁calls▁end｜>`.
 */
import { callsWithin, jsonOf, listOf, tagOf, type ToolCallFormat, triggerOf } from '../toolFormat';

const OPEN = '<｜tool▁calls▁begin｜>';
const CLOSE = '<｜tool▁calls▁end｜>';
const CALL = '<｜tool▁call▁begin｜>';
const CALL_END = '<｜tool▁call▁end｜>';
const SEPARATOR = '<｜tool▁sep｜>';
const BLOCK = '```json';

export const deepseek: ToolCallFormat = {
  names: ['deepseek_v3', 'deepseek_v31'],
  // The word function is before the name in one of the two forms.
  toolNames: /^(?!function$)[^\s<>[\]{}()|=\p{Surrogate}]+$/u,
  detects: (template) => template.includes(OPEN),
  markers: [OPEN, CLOSE, CALL, CALL_END, SEPARATOR],
  parse: (cursor, sink) =>
    callsWithin(cursor, sink, [OPEN], function* () {
      for (let hasCall = false; ; hasCall = true) {
        yield* cursor.skipSpace();
        if (yield* cursor.takes(CLOSE)) return hasCall;
        if (!(yield* cursor.takes(CALL))) return hasCall;
        const head = yield* cursor.textUntil([SEPARATOR]);
        if (head.stop === null) return hasCall;
        let name = head.text.trim();
        if (name === 'function') {
          const line = yield* cursor.textUntil(['\n']);
          if (line.stop === null) return hasCall;
          name = line.text.trim();
        }
        sink.beginCall(name);
        yield* cursor.skipSpace();
        yield* cursor.takes(BLOCK);
        yield* cursor.skipSpace();
        yield* cursor.jsonValue((text) => sink.arguments(text));
        yield* cursor.skipSpace();
        yield* cursor.takes('```');
        yield* cursor.skipSpace();
        yield* cursor.takes(CALL_END);
      }
    }),
  syntax: (settings) => {
    const { tools, isParallel, template } = settings;
    const hasBlocks = template.includes(BLOCK);
    const calls = tools.map((tool) =>
      hasBlocks
        ? tagOf(
            settings,
            `${CALL}function${SEPARATOR}${tool.name}\n${BLOCK}\n`,
            [jsonOf(tool)],
            `\n\`\`\`${CALL_END}`,
          )
        : tagOf(settings, `${CALL}${tool.name}${SEPARATOR}`, [jsonOf(tool)], CALL_END),
    );
    const list = listOf(calls, hasBlocks ? '\n' : '', isParallel);
    return {
      tags: [tagOf(settings, OPEN, [list], CLOSE)],
      isList: true,
      triggers: [triggerOf(settings, OPEN)],
      separator: '',
      isWholeReply: false,
    };
  },
};
