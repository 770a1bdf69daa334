/** How models mark reasoning in a reply. */

export interface ReasoningFormat {
  /** vLLM's names of its parser. */
  readonly names: readonly string[];
  readonly start: string;
  readonly end: string;
  /** What may be a special token in the marks. */
  readonly markers: readonly string[];
  /** Whether a chat template has it. */
  detects(template: string): boolean;
}

function between(names: readonly string[], start: string, end: string): ReasoningFormat {
  return {
    names,
    start,
    end,
    markers: [start, end],
    detects: (template) => template.includes(end),
  };
}

const THINK = [
  'deepseek_r1',
  'qwen3',
  'deepseek_v3',
  'glm45',
  'nemotron_v3',
  'olmo3',
  'minimax_m2',
  'kimi_k2',
  'holo2',
];

/** In the order in which they are looked for in a template. */
export const REASONING_FORMATS: readonly ReasoningFormat[] = [
  between(THINK, '<think>', '</think>'),
  between(['mistral'], '[THINK]', '[/THINK]'),
  between(['seed_oss'], '<seed:think>', '</seed:think>'),
  {
    names: ['gemma4'],
    start: '<|channel>thought\n',
    end: '<channel|>',
    markers: ['<|channel>', '<channel|>'],
    detects: (template) => template.includes('<|channel>') && template.includes('<channel|>'),
  },
  {
    names: ['granite'],
    start: 'Here is my thought process:',
    end: 'Here is my response:',
    markers: [],
    detects: (template) => template.includes('Here is my response:'),
  },
];

/** Template variables that turn reasoning on and off. */
const SWITCHES = ['enable_thinking', 'thinking'];

/** The variable with which a template turns reasoning off; null if it has none. */
export function switchOf(template: string): string | null {
  const code = template.match(/\{[{%][^]*?[%}]\}/g)?.join('') ?? '';
  // Not a field of a message, and not a part of a text.
  const hasVariable = (name: string) => new RegExp(`(?<![.'"\\w])${name}(?!['"\\w])`).test(code);
  return SWITCHES.find(hasVariable) ?? null;
}
