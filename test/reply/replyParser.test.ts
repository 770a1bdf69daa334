/** Replies of each family: parsed, whatever the pieces in which they come. */
import fc from 'fast-check';
import type { AssistantMessage, MessageDelta } from '../../lib';
import { replyFormatOf } from '../../lib/reply/replyFormat';
import { ReplyParser } from '../../lib/reply/replyParser';
import { mergeMessages } from '../../lib/reply/replySink';

const tools = [
  {
    name: 'f',
    parameters: {
      type: 'object',
      properties: {
        city: { type: 'string' },
        days: { $ref: '#/$defs/days' },
        note: { type: ['string', 'null'] },
        o: { type: 'object' },
      },
      $defs: { days: { type: 'integer' } },
    },
  },
  { name: 'g', parameters: { type: 'object' } },
];

interface Names {
  tool?: string | null;
  reasoning?: string | null;
  isOpened?: boolean;
}

function parserOf({ tool = null, reasoning = null, isOpened = false }: Names): ReplyParser {
  const format = replyFormatOf('', { toolCallParser: tool, reasoningParser: reasoning });
  return new ReplyParser({ format, calls: format.tools, tools, isOpened });
}

/** The message without ids, which are random. */
function parsed(names: Names, pieces: readonly string[]): object {
  const parser = parserOf(names);
  const all: MessageDelta = { content: '', reasoning: '', toolCalls: [] };
  const take = () => {
    const delta = parser.take();
    if (delta !== null) mergeMessages(all, delta);
  };
  for (const piece of pieces) {
    parser.push(piece);
    take();
  }
  parser.finish();
  take();
  const { message } = parser;
  // Deltas appended are the message.
  expect(all.content).toBe(message.content);
  expect(all.reasoning).toBe(message.reasoning ?? '');
  expect(all.toolCalls.map(({ index: _, ...call }) => call)).toEqual(message.toolCalls);
  return plain(message);
}

const plain = ({ content, reasoning, toolCalls }: AssistantMessage) => ({
  content,
  reasoning,
  calls: toolCalls.map((call) => [call.name, call.arguments]),
});

const BEGIN = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>';
const END = '<｜tool▁call▁end｜><｜tool▁calls▁end｜>';
const Q = '<|"|>';

type Call = [name: string, argumentsText: string];

/** Parsers with texts; what each text is: content, calls, reasoning. */
const CASES: [Names, [string, string, Call[]?, (string | null)?][]][] = [
  [
    { tool: 'hermes', reasoning: 'qwen3' },
    [
      ['', ''],
      [' plain <tool text', ' plain <tool text'],
      [
        '<tool_call>\n{"name": "f", "arguments": {"city": "R\\"o}"}}\n</tool_call>',
        '',
        [['f', '{"city": "R\\"o}"}']],
      ],
      [
        'Both:\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>{"arguments":{"a":[1]},"name":"g"}</tool_call>',
        'Both:\n',
        [
          ['f', '{}'],
          ['g', '{"a":[1]}'],
        ],
      ],
      ['<tool_call>{"name": "g"}</tool_call> done', 'done', [['g', '{}']]],
      ['<tool_call>\nnot JSON</tool_call> x', '<tool_call>\nnot JSON</tool_call> x'],
      ['<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>'],
      ['<tool_call>{"name": "f", "arguments": {"city": "Ro', '', [['f', '{"city": "Ro']]],
      [
        '<tool_call>{"name": "f", "arguments": {"u": "é漢😀"}}</tool_call>',
        '',
        [['f', '{"u": "é漢😀"}']],
      ],
      ['<think>\nWhat? <tool_call>\n</think>\n\nYes.\n', 'Yes.\n', [], 'What? <tool_call>'],
      [
        '<think>\n\n</think>\n\n<tool_call>{"name":"g","arguments":{}}</tool_call>',
        '',
        [['g', '{}']],
        '',
      ],
      ['<think>cut', '', [], 'cut'],
      ['I <think> so', 'I <think> so'],
    ],
  ],
  [
    { tool: 'hermes', reasoning: 'deepseek_r1', isOpened: true },
    [
      ['a\nb\n</think>\nc', 'c', [], 'a\nb'],
      ['cut off', '', [], 'cut off'],
    ],
  ],
  [
    { tool: 'qwen3_coder' },
    [
      [
        'Text\n<tool_call>\n<function=f>\n<parameter=city>\nRome "x"\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=note>\nnull\n</parameter>\n<parameter=o>\n{"a": [1]}\n</parameter>\n</function>\n</tool_call>',
        'Text\n',
        [['f', '{"city": "Rome \\"x\\"\\n", "days": 3, "note": null, "o": {"a": [1]}}']],
      ],
      ['<tool_call>\n<function=g>\n</function>\n</tool_call>', '', [['g', '{}']]],
      [
        "<function=f>\n<parameter=o>\n{'a': ['b', None]}\n</parameter>\n</function>",
        '',
        [['f', '{"o": {"a": ["b", null]}}']],
      ],
      ['<function=g>\n<parameter=x>\nTrue\n</parameter>\n</function>', '', [['g', '{"x": true}']]],
      ['<tool_call>\nno', '<tool_call>\nno'],
      ['<tool_call>\n<function=f>\n<parameter=city>\nRo', '', [['f', '']]],
    ],
  ],
  [
    { tool: 'llama3_json' },
    [
      ['{"name": "f", "parameters": {"city": "a"}}', '', [['f', '{"city": "a"}']]],
      [
        '<|python_tag|>{"type": "function", "name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
        '',
        [
          ['f', '{}'],
          ['g', '{}'],
        ],
      ],
      ['{"a": 1} is JSON', '{"a": 1} is JSON'],
      ['{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}'],
      ['{"name": "f", "parameters": {}}; {"a": 1} x', '; {"a": 1} x', [['f', '{}']]],
      ['Hello {"name": "f", "parameters": {}}', 'Hello {"name": "f", "parameters": {}}'],
    ],
  ],
  [
    { tool: 'pythonic' },
    [
      [
        '[f(city="R\\"o", days=-2), g()]',
        '',
        [
          ['f', '{"city": "R\\"o", "days": -2}'],
          ['g', '{}'],
        ],
      ],
      [
        "<|python_start|>[f(o={'a': [True, None, 1.5], 'b': (1,)})]<|python_end|>",
        '',
        [['f', '{"o": {"a": [true, null, 1.5], "b": [1]}}']],
      ],
      ['[1] is a source', '[1] is a source'],
      ['[see (this)', '[see (this)', []],
      ['text [f()]', 'text [f()]'],
      ['[f(city="x', '', [['f', '']]],
    ],
  ],
  [
    { tool: 'mistral', reasoning: 'mistral' },
    [
      [
        '[TOOL_CALLS] [{"name": "f", "arguments": {"city": "]"}}, {"name": "g", "arguments": {}}]',
        '',
        [
          ['f', '{"city": "]"}'],
          ['g', '{}'],
        ],
      ],
      [
        'Hi[TOOL_CALLS]f[ARGS]{"city": "a"}[TOOL_CALLS]g[CALL_ID]abc[ARGS]{}',
        'Hi',
        [
          ['f', '{"city": "a"}'],
          ['g', '{}'],
        ],
      ],
      [
        '[TOOL_CALLS]f{"city": "a"}[TOOL_CALLS]g{}',
        '',
        [
          ['f', '{"city": "a"}'],
          ['g', '{}'],
        ],
      ],
      ['[THINK]so[/THINK]Yes', 'Yes', [], 'so'],
      ['[TOOL_CALLS]nothing', '[TOOL_CALLS]nothing'],
    ],
  ],
  [
    { tool: 'deepseek_v3', reasoning: 'deepseek_r1' },
    [
      [
        `Sure.${BEGIN}function<｜tool▁sep｜>f\n\`\`\`json\n{"city": "a"}\n\`\`\`<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n\`\`\`json\n{}\n\`\`\`${END}`,
        'Sure.',
        [
          ['f', '{"city": "a"}'],
          ['g', '{}'],
        ],
      ],
      [
        `<think>x</think>${BEGIN}f<｜tool▁sep｜>{"city": "a"}${END}`,
        '',
        [['f', '{"city": "a"}']],
        'x',
      ],
      ['<｜tool▁calls▁begin｜>?', '<｜tool▁calls▁begin｜>?'],
    ],
  ],
  [
    { tool: 'gemma4', reasoning: 'gemma4' },
    [
      [
        `<|tool_call>call:f{city:${Q}a "b", c${Q},days:2,o:{a:[1,${Q}x${Q},{}],${Q}b${Q}:null}}<tool_call|><|tool_call>call:g{}<tool_call|>`,
        '',
        [
          ['f', '{"city": "a \\"b\\", c", "days": 2, "o": {"a": [1, "x", {}], "b": null}}'],
          ['g', '{}'],
        ],
      ],
      ['<|channel>thought\nhm\n<channel|>Yes', 'Yes', [], 'hm'],
      [`<|tool_call>call:f{city:${Q}a`, '', [['f', '']]],
    ],
  ],
  [
    { tool: 'functiongemma' },
    [
      [
        '<start_function_call>call:f{city:<escape>a<escape>,days:1}<end_function_call>',
        '',
        [['f', '{"city": "a", "days": 1}']],
      ],
    ],
  ],
  [
    { tool: 'openai' },
    [
      [
        '<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi!',
        'Hi!',
        [],
        'Hm.',
      ],
      [
        '<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>analysis<|message|>B<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"city":"a"}<|call|>',
        '',
        [['f', '{"city":"a"}']],
        'A\nB',
      ],
      [
        '<|channel|>commentary<|message|>First.<|end|><|start|>assistant to=functions.g<|channel|>commentary json<|message|>{}',
        'First.',
        [['g', '{}']],
      ],
      ['plain', 'plain'],
    ],
  ],
];

test.each(CASES)('%j', (names, texts) => {
  for (const [text, content, calls = [], reasoning = null] of texts) {
    const expected = { content, reasoning, calls };
    expect([text, parsed(names, [text])]).toEqual([text, expected]);
    expect([text, parsed(names, text.split(''))]).toEqual([text, expected]);
    const cuts = fc.array(fc.nat(text.length), { maxLength: 8 });
    fc.assert(
      fc.property(cuts, (list) => {
        const at = [0, ...list.sort((a, b) => a - b), text.length];
        const pieces = at.slice(1).map((end, i) => text.slice(at[i], end));
        expect(parsed(names, pieces)).toEqual(expected);
      }),
      { numRuns: 10 },
    );
  }
});

test('a long argument costs no more than its length', () => {
  const duration = (numPieces: number) => {
    const parser = parserOf({ tool: 'qwen3_coder' });
    parser.push('<tool_call>\n<function=f>\n<parameter=city>\n');
    // Processor time, which other processes do not add to.
    const begin = process.cpuUsage();
    for (let i = 0; i < numPieces; i++) parser.push('word '.repeat(20));
    return process.cpuUsage(begin).user;
  };
  duration(2000);
  // Quadratic, 16 times the pieces would take 256 times as long.
  expect(duration(32_000) / duration(2000)).toBeLessThan(80);
});

test('a template of the same functions between other tags has no notation', () => {
  const seed =
    '<seed:tool_call>\n<function=f>\n<parameter=a>\n</parameter></function></seed:tool_call>';
  expect(replyFormatOf(seed).tools).toBeNull();
});

test('no text makes a parser fail, and the pieces never matter', () => {
  const words = [
    ...[
      '<tool_call>',
      '</tool_call>',
      '<function=f>',
      '<parameter=a>',
      '</parameter>',
      '</function>',
    ],
    ...[
      '{"name": "f"',
      ', "arguments": {',
      '"',
      '}',
      '[',
      ']',
      '\\',
      ' ',
      '\n',
      'x',
      '1',
      ',',
      ':',
      ';',
    ],
    ...[
      '[TOOL_CALLS]',
      '[ARGS]',
      'f(',
      ')',
      '=',
      BEGIN,
      '<｜tool▁sep｜>',
      END,
      Q,
      '<|tool_call>call:f{',
    ],
    ...[
      '<|channel|>',
      'analysis',
      '<|message|>',
      '<|end|>',
      '<|start|>',
      '<think>',
      '</think>',
      '😀',
    ],
  ];
  const pieces = fc.array(fc.constantFrom(...words), { maxLength: 25 });
  const names = fc.constantFrom(...CASES.map(([one]) => one));
  fc.assert(
    fc.property(names, pieces, (one, list) => {
      const whole = list.join('');
      const expected = parsed(one, [whole]);
      expect(parsed(one, list)).toEqual(expected);
      expect(parsed(one, Array.from(whole))).toEqual(expected);
    }),
    { numRuns: 1500 },
  );
});
