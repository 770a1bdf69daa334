/** Hermes, Qwen 2.5 and 3: `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`. */
import {
  callsWithin,
  constant,
  jsonCall,
  jsonOf,
  tagOf,
  type ToolCallFormat,
  triggerOf,
} from '../toolFormat';

const OPEN = '<tool_call>';
const CLOSE = '</tool_call>';

export const hermes: ToolCallFormat = {
  names: ['hermes'],
  // GLM and others write something else between the same tags.
  detects: (template) => template.includes(OPEN) && !template.includes('<arg_key>'),
  markers: [OPEN, CLOSE],
  parse: (cursor, sink) =>
    callsWithin(cursor, sink, [OPEN], function* () {
      yield* cursor.skipSpace();
      if (!(yield* jsonCall(cursor, sink))) return false;
      yield* cursor.skipSpace();
      yield* cursor.takes(CLOSE);
      return true;
    }),
  syntax: (settings) => ({
    tags: settings.tools.map((tool) =>
      tagOf(
        settings,
        `${OPEN}\n{"name": ${JSON.stringify(tool.name)}, "arguments": `,
        [jsonOf(tool), constant('}')],
        `\n${CLOSE}`,
      ),
    ),
    isList: false,
    triggers: [triggerOf(settings, OPEN)],
    separator: '\n',
    isWholeReply: false,
  }),
};
