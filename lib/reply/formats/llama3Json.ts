/**
 * Llama 3: the whole reply is `{"name": ..., "parameters": {...}}`, more calls behind `; `, maybe after
 * `<|python_tag|>`.
 */
import type { StructuralFormat } from '../../config/structuralTag';
import { jsonCall, jsonOf, restIsContent, tagOf, type ToolCallFormat } from '../toolFormat';

const TAG = '<|python_tag|>';
const BEGIN = '{"name": ';

export const llama3Json: ToolCallFormat = {
  names: ['llama3_json', 'llama4_json'],
  // Functionary's templates have the tag too.
  detects: (template) =>
    (template.includes('"parameters": dictionary') || template.includes(TAG)) &&
    !template.includes('<function='),
  markers: [TAG],
  *parse(cursor, sink, tools) {
    // An answer may be JSON that has a name.
    const isTool = (name: string) => tools.some((tool) => tool.name === name);
    cursor.setMark();
    yield* cursor.skipSpace();
    yield* cursor.takes(TAG);
    yield* cursor.skipSpace();
    for (let isFirst = true; ; isFirst = false) {
      if (!(yield* jsonCall(cursor, sink, isTool))) {
        const text = cursor.markedText;
        if (isFirst || text.trim() !== ';') sink.content(text);
        break;
      }
      cursor.setMark();
      yield* cursor.skipSpace();
      if (!(yield* cursor.takes(';'))) break;
      yield* cursor.skipSpace();
    }
    cursor.releaseMark();
    yield* restIsContent(cursor, sink);
  },
  syntax: (settings) => {
    const calls = (begin: string) =>
      settings.tools.map((tool) =>
        tagOf(
          settings,
          `${begin}${JSON.stringify(tool.name)}, "parameters": `,
          [jsonOf(tool)],
          '}',
        ),
      );
    const more: StructuralFormat = {
      type: 'star',
      content: { type: 'or', elements: calls(`; ${BEGIN}`) },
    };
    const elements: StructuralFormat[] = [{ type: 'or', elements: calls(BEGIN) }];
    if (settings.isParallel) elements.push(more);
    return {
      tags: [{ type: 'tag', begin: '', content: { type: 'sequence', elements }, end: '' }],
      isList: true,
      triggers: ['{"name"'],
      separator: '',
      isWholeReply: true,
    };
  },
};
