import { readFileSync } from 'node:fs';
import path from 'node:path';
import { TemplateRuntimeError, TemplateSyntaxError } from '../../lib/tokenizer/jinja/errors';
import { strftime } from '../../lib/tokenizer/jinja/strftime';
import { JinjaTemplate } from '../../lib/tokenizer/jinja/template';

/** jinja2's result for each snippet, recorded by jinja/make.py. */
interface Case {
  section: string;
  template: string;
  text?: string;
  error?: string;
  message?: string;
  syntaxError?: number;
}

const { context, cases } = JSON.parse(
  readFileSync(path.join(__dirname, 'jinja', 'expected.json'), 'utf8'),
) as { context: Record<string, unknown>; cases: Case[] };

const render = (template: string, variables: Record<string, unknown> = {}) =>
  new JinjaTemplate(template).render(variables);

describe('JinjaTemplate, as jinja2', () => {
  const rendered = cases.filter(({ text }) => text !== undefined);
  it.each(rendered)('renders $template ($section)', ({ template, text }) => {
    expect(render(template, context)).toBe(text);
  });

  const raising = cases.filter(({ error }) => error !== undefined);
  it.each(raising)('raises $error for $template', ({ template, error }) => {
    const compiled = new JinjaTemplate(template);
    expect(() => compiled.render(context)).toThrow(TemplateRuntimeError);
    // The sandbox may reject more attributes than jinja2's.
    const kinds = template.includes('__globals__') ? ['SecurityError', error] : [error];
    expect(kinds).toContain(kindOf(() => compiled.render(context)));
  });

  const broken = cases.filter(({ syntaxError }) => syntaxError !== undefined);
  it.each(broken)('does not compile $template', ({ template }) => {
    expect(() => new JinjaTemplate(template)).toThrow(TemplateSyntaxError);
  });
});

function kindOf(run: () => unknown): string | null {
  try {
    run();
  } catch (error) {
    return (error as TemplateRuntimeError).kind;
  }
  return null;
}

describe('an error', () => {
  it('names the line that does not compile', () => {
    const template = '{{ 1 }}\n{% if true %}\n{{ x|nope }}\n{% endif %}\n\n{{ y|nope }}';
    expect(() => new JinjaTemplate(template)).toThrow("line 6: No filter named 'nope'.");
  });

  it('has the line where it was raised', () => {
    const template = '{{ 1 }}\n{% for x in [1] %}\n{{ x + "a" }}\n{% endfor %}';
    expect(() => render(template)).toThrow(expect.objectContaining({ line: 3 }) as Error);
  });
});

describe('the data of a template', () => {
  it.each([
    [1, '1'],
    [1.5, '1.5'],
    [1e21, '1e+21'],
    [-0, '-0.0'],
    [12345678901234567890n, '12345678901234567890'],
    [new Number(1), '1.0'],
    [[1, undefined], '[1, None]'],
    [{ a: undefined, b: null }, "{'b': None}"],
    [new Map([['a', true]]), "{'a': True}"],
  ])('reads %p as JSON would carry it', (value, text) => {
    expect(render('{{ value }}', { value })).toBe(text);
  });

  it('has no prototype', () => {
    const value = JSON.parse('{ "__proto__": { "a": 1 }, "toString": 2 }') as unknown;
    expect(
      render('{{ value.__proto__ }} {{ value.toString }} {{ value.a is defined }}', { value }),
    ).toBe("{'a': 1} 2 False");
  });

  it('is rejected if it is cyclic', () => {
    const value: Record<string, unknown> = {};
    value.value = value;
    expect(() => render('x', { value })).toThrow(/nested deeper/);
  });

  it('is rejected if it is a function', () => {
    expect(() => render('x', { value: () => 1 })).toThrow('value is a function');
  });
});

describe('the cost of a template', () => {
  it.each([
    '{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}',
    '{{ range(100000)|map("string")|join("x" * 10000) }}',
    '{% set ns = namespace(s="a") %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}',
    '{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}',
    '{% set ns = namespace(s=1) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}',
    '{% set ns = namespace(s=1) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}',
    '{{ "a" * 10**12 }}',
    '{{ [0] * 10**9 }}',
    '{{ "%1000000000d" % 1 }}',
    '{{ "{:1000000000}".format(1) }}',
    '{{ "a".center(10**10) }}',
  ])('has a limit: %s', (template) => {
    expect(kindOf(() => render(template))).toBe('MemoryError');
  });

  it('is limited by the size of an int', () => {
    expect(kindOf(() => render('{{ (9 ** 9) ** (9 ** 9) }}'))).toBe('OverflowError');
  });

  it.each([
    '{{ ' + '('.repeat(1e5),
    '{{ ' + '-'.repeat(1e5) + '1 }}',
    '{{ a' + '.b'.repeat(1e5) + ' }}',
  ])('has a limit: nesting in the text (%#)', (template) => {
    expect(() => new JinjaTemplate(template)).toThrow(TemplateSyntaxError);
  });

  it('allows a long conversation', () => {
    const template =
      '{% for m in messages %}{% if loop.index0 > 0 and messages[loop.index0 - 1].role == m.role %}' +
      '!{% endif %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}';
    const messages = Array.from({ length: 10_000 }, (_, i) => ({
      role: i % 2 ? 'assistant' : 'user',
      content: ' word'.repeat(100),
    }));
    expect(render(template, { messages })).toHaveLength(10_000 * 499 + 5000 * (8 + 13));
  });
});

describe('strftime', () => {
  // Expected values: Python's datetime(2024, 12, 30, 9, 5, 7).strftime(...).
  it.each([
    ['%Y-%m-%d %H:%M:%S', '2024-12-30 09:05:07'],
    ['%d %b %Y|%B|%a|%A', '30 Dec 2024|December|Mon|Monday'],
    ['%y|%j|%I|%p|%u|%w|%%', '24|365|09|AM|1|1|%'],
    ['%U|%W|%V|%G|%g', '52|53|01|2025|25'],
    ['%e|%-d|%-m|%-H|%k|%l|%_d|%^a', '30|30|12|9| 9| 9|30|MON'],
    [
      '%c|%x|%X|%D|%F|%T|%R|%r',
      'Mon Dec 30 09:05:07 2024|12/30/24|09:05:07|12/30/24|2024-12-30|09:05:07|09:05|09:05:07 AM',
    ],
    ['%f|%z|%Z|%C|%h|%n%t|', '000000|||20|Dec|\n\t|'],
  ])('writes %s', (format, text) => {
    expect(strftime(new Date(2024, 11, 30, 9, 5, 7), format)).toBe(text);
  });
});
