/** Small templates with the notations of real ones. */

const TURNS = (call: string, more = '') => `{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}<{{ m.role }}>{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}${call}{% endfor %}
{% endfor %}${more}{% if add_generation_prompt %}<assistant>{% endif %}`;

const ARGUMENTS = 'c.function.arguments | tojson';
const LIST = `{"name": "{{ c.function.name }}", "KEY": {{ ${ARGUMENTS} }}}`;

export const TEMPLATES: Readonly<Record<string, string>> = {
  hermes: TURNS(`\n<tool_call>\n${LIST.replace('KEY', 'arguments')}\n</tool_call>`),
  qwen3_coder: TURNS(
    '\n<tool_call>\n<function={{ c.function.name }}>\n' +
      '{% for k, v in c.function.arguments | items %}<parameter={{ k }}>\n' +
      '{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>',
  ),
  llama3_json: TURNS(
    LIST.replace('KEY', 'parameters'),
    '{# in the format {"name": function name, "parameters": dictionary of arguments} #}',
  ),
  pythonic: TURNS(
    "[{{ c.function.name }}({% for k, v in c.function.arguments | items %}{{ ', ' if not loop.first }}" +
      '{{ k }}={{ v | tojson }}{% endfor %})]',
    '{# [func_name1(params_name1=params_value1, params_name2=params_value2...)] #}',
  ),
  'mistral list': TURNS(`[TOOL_CALLS] [${LIST.replace('KEY', 'arguments')}]`),
  'mistral args': TURNS(`[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ ${ARGUMENTS} }}`),
  'mistral names': TURNS(`[TOOL_CALLS]{{ c.function.name }}{{ c.function.arguments }}`),
  deepseek_v3: TURNS(
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ c.type }}<｜tool▁sep｜>{{ c.function.name }}\n' +
      `\`\`\`json\n{{ ${ARGUMENTS} }}\n\`\`\`<｜tool▁call▁end｜><｜tool▁calls▁end｜>`,
  ),
  deepseek_v31: TURNS(
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>' +
      `{{ ${ARGUMENTS} }}<｜tool▁call▁end｜><｜tool▁calls▁end｜>`,
  ),
  gemma4: TURNS(
    '<|tool_call>call:{{ c.function.name }}{{ "{" }}' +
      "{% for k, v in c.function.arguments | items %}{{ ',' if not loop.first }}{{ k }}:" +
      '{% if v is string %}<|"|>{{ v }}<|"|>{% else %}{{ v | tojson }}{% endif %}{% endfor %}}<tool_call|>',
  ),
  functiongemma: TURNS(
    '<start_function_call>call:{{ c.function.name }}{{ "{" }}' +
      "{% for k, v in c.function.arguments | items %}{{ ',' if not loop.first }}{{ k }}:" +
      '{% if v is string %}<escape>{{ v }}<escape>{% else %}{{ v | tojson }}{% endif %}{% endfor %}}' +
      '<end_function_call>',
  ),
  openai: TURNS(
    '<|channel|>commentary to=functions.{{ c.function.name }} <|constrain|>json<|message|>' +
      `{{ ${ARGUMENTS} }}<|call|>`,
  ),
};
