/**
 * Qwen3-Coder: `<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>`.
 * A value is a string as it is, or JSON of another type.
 */
import { argumentOf, openObject } from '../argumentValues';
import type { Cursor, Parsing } from '../cursor';
import type { ReplySink } from '../replySink';
import {
  BARE_NAMES,
  callsWithin,
  tagOf,
  type Tool,
  type ToolCallFormat,
  triggerOf,
} from '../toolFormat';

const OPEN = '<tool_call>';
const CLOSE = '</tool_call>';
const FUNCTION = '<function=';
const FUNCTION_END = '</function>';
const PARAMETER = '<parameter=';
const PARAMETER_END = '</parameter>';

export const qwen3Coder: ToolCallFormat = {
  names: ['qwen3_coder', 'qwen3_xml'],
  toolNames: BARE_NAMES,
  // Seed-OSS writes the same functions between other tags.
  detects: (template) => [OPEN, FUNCTION, PARAMETER].every((mark) => template.includes(mark)),
  markers: [OPEN, CLOSE],
  parse: (cursor, sink, tools) =>
    callsWithin(cursor, sink, [OPEN, FUNCTION], function* (open) {
      if (open === OPEN) {
        yield* cursor.skipSpace();
        if (!(yield* cursor.takes(FUNCTION))) return false;
      }
      const name = yield* cursor.textUntil(['>', '\n']);
      if (name.stop !== '>' || name.text === '') return false;
      sink.beginCall(name.text);
      yield* callArguments(
        cursor,
        sink,
        tools.find((tool) => tool.name === name.text),
      );
      yield* cursor.skipSpace();
      yield* cursor.takes(CLOSE);
      return true;
    }),
  syntax: (settings) => ({
    tags: settings.tools.map(({ name, parameters }) =>
      tagOf(
        settings,
        `${OPEN}\n${FUNCTION}${name}>\n`,
        [{ type: 'qwen_xml_parameter', json_schema: parameters }],
        `${FUNCTION_END}\n${CLOSE}`,
      ),
    ),
    isList: false,
    triggers: [triggerOf(settings, OPEN)],
    separator: '\n',
    isWholeReply: false,
  }),
};

function* callArguments(cursor: Cursor, sink: ReplySink, tool: Tool | undefined): Parsing {
  const object = openObject(sink);
  for (;;) {
    yield* cursor.skipSpace();
    if (yield* cursor.takes(FUNCTION_END)) break;
    if (!(yield* cursor.takes(PARAMETER))) break;
    const key = yield* cursor.textUntil(['>']);
    if (key.stop === null) return;
    const { text, stop } = yield* cursor.textUntil([PARAMETER_END]);
    // A value that breaks off is left out, and the arguments stay open.
    if (stop === null) return;
    const value = text.replace(/^\n/, '').replace(/\n$/, '');
    object.add(key.text, argumentOf(value, tool?.parameters, key.text));
  }
  object.close();
}
