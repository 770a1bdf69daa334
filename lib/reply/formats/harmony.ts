/**
 * gpt-oss: messages with a header, `<|channel|>analysis<|message|>...<|end|>`, begun by
 * `<|start|>assistant`. The channel analysis is reasoning; a message to `functions.NAME` is a call.
 */
import type { StructuralFormat } from '../../config/structuralTag';
import type { Cursor, Parsing } from '../cursor';
import type { ReplySink } from '../replySink';
import { constant, jsonOf, type SyntaxSettings, type Tool } from '../toolFormat';

const START = '<|start|>';
const CHANNEL = '<|channel|>';
const CONSTRAIN = '<|constrain|>';
const MESSAGE = '<|message|>';
const END = '<|end|>';
const ENDS = [END, '<|call|>', '<|return|>'];
const FUNCTIONS = 'functions.';

export const HARMONY_MARKERS: readonly string[] = [START, CHANNEL, CONSTRAIN, MESSAGE, ...ENDS];
export const HARMONY_NAMES: readonly string[] = ['openai', 'openai_gptoss'];

export const isHarmony = (template: string): boolean =>
  template.includes(CHANNEL) && template.includes(MESSAGE);

/** `onReasoning` is told whether what comes is reasoning. */
export function* parseHarmony(
  cursor: Cursor,
  sink: ReplySink,
  onReasoning: (isReasoning: boolean) => void,
): Parsing {
  let numAnalyses = 0;
  for (;;) {
    cursor.setMark();
    if (yield* cursor.takes(START)) yield* cursor.takes('assistant');
    yield* cursor.skipSpace();
    const hasHeader = (yield* cursor.takes(CHANNEL)) || (yield* cursor.takes('to='));
    if (!hasHeader) {
      // Text without a header.
      sink.content(cursor.markedText);
      const stop = yield* cursor.until([...ENDS, START, CHANNEL], (text) => sink.content(text));
      if (stop === null) return;
      if (!ENDS.includes(stop)) cursor.rewind();
      continue;
    }
    const header = yield* cursor.textUntil([MESSAGE]);
    const written = cursor.markedText;
    cursor.releaseMark();
    // A header that breaks off says nothing.
    if (header.stop === null) return;
    const recipient = /\bto=([^\s<]+)/.exec(written)?.[1];
    const isAnalysis = new RegExp(`${CHANNEL.replaceAll('|', '\\|')}\\s*analysis`).test(written);
    let emit = (text: string) => sink.content(text);
    if (recipient !== undefined) {
      sink.beginCall(
        recipient.startsWith(FUNCTIONS) ? recipient.slice(FUNCTIONS.length) : recipient,
      );
      emit = (text) => sink.arguments(text);
    } else if (isAnalysis) {
      onReasoning(true);
      sink.beginReasoning();
      if (numAnalyses++ > 0) sink.reasoning('\n');
      emit = (text) => sink.reasoning(text);
    }
    const stop = yield* cursor.until([...ENDS, START], emit);
    onReasoning(false);
    if (isAnalysis && recipient === undefined) sink.endReasoning();
    if (stop === null) return;
    if (stop === START) cursor.rewind();
  }
}

export interface HarmonySyntax extends Pick<SyntaxSettings, 'parts' | 'tools' | 'isParallel'> {
  /** Whether the reply must be a call. */
  isRequired: boolean;
  /** What the final message is; null: any text. */
  content: StructuralFormat | null;
}

/** A whole reply. Each call ends it, as the model's end of turn follows. */
export function harmonyStructure({
  parts,
  tools,
  isRequired,
  content,
}: HarmonySyntax): StructuralFormat {
  const sequence = (...elements: StructuralFormat[]): StructuralFormat => ({
    type: 'sequence',
    elements,
  });
  const text: StructuralFormat = { type: 'any_text' };
  const next = parts(`${END}${START}assistant`);
  const before = (channel: string) =>
    sequence(...parts(`${CHANNEL}${channel}${MESSAGE}`), text, ...next);
  const callOf = (tool: Tool) => ({
    type: 'or' as const,
    elements: [
      `${CHANNEL}commentary to=${FUNCTIONS}${tool.name} ${CONSTRAIN}json${MESSAGE}`,
      ` to=${FUNCTIONS}${tool.name}${CHANNEL}commentary ${CONSTRAIN}json${MESSAGE}`,
    ].map((header) => sequence(...parts(header), jsonOf(tool))),
  });
  const endings: StructuralFormat[] = tools.map(callOf);
  if (!isRequired) {
    endings.push(sequence(...parts(`${CHANNEL}final${MESSAGE}`), content ?? text));
  }
  return sequence(
    {
      type: 'star',
      content: { type: 'or', elements: [before('analysis'), before('commentary')] },
    },
    endings.length === 1 ? endings[0] : { type: 'or', elements: endings },
    constant(''),
  );
}
