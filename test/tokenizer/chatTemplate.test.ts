import { mkdir, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { ChatTemplateError, CheckpointError, ConfigError, InvalidRequestError } from '../../lib';
import { renderChatTemplate } from '../../lib';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { byteTokenizerFiles } from '../engine/byteTokenizer';
import { folderWith } from '../support/folder';

const MESSAGES = [{ role: 'user', content: 'Hi' }];
const ROLES =
  '{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}' +
  '{% if add_generation_prompt %}<assistant>{% endif %}';

describe('renderChatTemplate', () => {
  it.each(['2 ** 1000000000', '(-15) ** 99999999999', '16 ** 65537', '10 ** 10000000'])(
    'rejects the int %s without computing it',
    (power) => {
      const render = () => renderChatTemplate(`{% set x = ${power} %}`, MESSAGES);
      expect(render).toThrow(
        /OverflowError in line 1: an int of \d+ bits exceeds the limit of 262144 bits/,
      );
    },
  );

  it('computes ints up to the limit', () => {
    const template = '{{ 2 ** 262144 > 15 ** 65536 }} {{ (-3) ** 3 }} {{ 1 ** 10000000000 }}';
    expect(renderChatTemplate(template, MESSAGES)).toBe('True -27 1');
  });

  it("starts the assistant's turn with addGenerationPrompt", () => {
    expect(renderChatTemplate(ROLES, MESSAGES)).toBe('<user>Hi</user>');
    expect(renderChatTemplate(ROLES, MESSAGES, { addGenerationPrompt: true })).toBe(
      '<user>Hi</user><assistant>',
    );
  });

  it('passes tools, documents, special tokens and kwargs to the template', () => {
    const template =
      '{{ tools|tojson }} {{ documents[0].title }} {{ bos_token }} {{ enable_thinking }} {{ x is defined }}';
    const options = {
      tools: [{ type: 'function', function: { name: 'f' } }],
      documents: [{ title: 'T', text: 'B' }],
      specialTokens: { bos_token: '<s>' },
      chatTemplateKwargs: { enable_thinking: false },
    };
    expect(renderChatTemplate(template, MESSAGES, options)).toBe(
      '[{"type": "function", "function": {"name": "f"}}] T <s> False False',
    );
  });

  it('passes None for missing tools and documents', () => {
    expect(renderChatTemplate('{{ tools }} {{ documents }}', MESSAGES)).toBe('None None');
    expect(renderChatTemplate('{{ tools }}', MESSAGES, { tools: [] })).toBe('[]');
  });

  it('prefers chatTemplateKwargs to special tokens', () => {
    const options = { specialTokens: { bos_token: 'a' }, chatTemplateKwargs: { bos_token: 'b' } };
    expect(renderChatTemplate('{{ bos_token }}', MESSAGES, options)).toBe('b');
  });

  it('passes null, missing and list content, and other fields, to the template', () => {
    const template =
      '{% for m in messages %}{{ m.content is defined }}{{ m.content }}{{ m.tool_calls }};{% endfor %}';
    const messages = [
      { role: 'assistant', content: null, tool_calls: [{ id: 'c' }] },
      { role: 'assistant', tool_calls: [] },
      { role: 'user', content: [{ type: 'text', text: 'x' }] },
    ];
    expect(renderChatTemplate(template, messages)).toBe(
      "TrueNone[{'id': 'c'}];False[];True[{'type': 'text', 'text': 'x'}];",
    );
  });

  it('names the line that does not compile', () => {
    const render = () => renderChatTemplate('{{ 1 }}\n{% nope %}', MESSAGES);
    expect(render).toThrow(ChatTemplateError);
    expect(render).toThrow(/^line 2: Encountered unknown tag 'nope'.*the line is '{% nope %}'/);
    expect(render).toThrow(
      expect.objectContaining({ code: 'CHAT_TEMPLATE_INVALID', line: 2 }) as Error,
    );
  });

  it("reports a template's raise_exception", () => {
    const render = () => renderChatTemplate("{{ raise_exception('No system role') }}", MESSAGES);
    expect(render).toThrow(InvalidRequestError);
    expect(render).toThrow('the chat template rejected the messages: No system role');
  });

  it('names the line that fails', () => {
    expect(() => renderChatTemplate('\n{{ messages[0].content + 1 }}', MESSAGES)).toThrow(
      'TypeError in line 2: can only concatenate str (not "int") to str',
    );
  });

  it.each<[unknown, object, RegExp]>([
    [[], {}, /messages is \[\]/],
    [[5], {}, /messages\[0\] is 5/],
    [MESSAGES, { tools: [5] }, /tools\[0\] is 5/],
    [MESSAGES, { documents: 'x' }, /documents is 'x'/],
    [
      MESSAGES,
      { chatTemplateKwargs: { tools: [] } },
      /must not contain tools; use the option tools/,
    ],
    [MESSAGES, { addGenerationPrompt: true, continueFinalMessage: true }, /cannot both be set/],
    [[{ role: 'user', content: () => 1 }], {}, /messages\[0\]\.content is a function/],
  ])('rejects %j with %j', (messages, options, message) => {
    const render = () => renderChatTemplate('x', messages as object[], options);
    expect(render).toThrow(InvalidRequestError);
    expect(render).toThrow(message);
  });
});

describe('continueFinalMessage', () => {
  const chat = (content: unknown, more = {}) => [
    ...MESSAGES,
    { role: 'assistant', content, ...more },
  ];
  const options = { continueFinalMessage: true };
  const KEEPING = ROLES.replace(' | trim', '');

  it('does not close the last message', () => {
    expect(renderChatTemplate(ROLES, chat('It is'), options)).toBe(
      '<user>Hi</user><assistant>It is',
    );
  });

  it('keeps trailing white space if the template does', () => {
    expect(renderChatTemplate(KEEPING, chat('It is '), options)).toMatch(/It is $/);
    expect(renderChatTemplate(ROLES, chat('It is '), options)).toMatch(/It is$/);
  });

  it('continues the last text part', () => {
    const template = '{% for p in messages[-1].content %}[{{ p.text }}]{% endfor %}';
    const parts = ['a', 'b'].map((text) => ({ type: 'text', text }));
    expect(renderChatTemplate(template, chat(parts), options)).toBe('[a][b');
  });

  it('continues another field', () => {
    const template = '{{ messages[-1].reasoning }}|{{ messages[-1].content }}';
    const messages = chat('x', { reasoning: 'so' });
    expect(renderChatTemplate(template, messages, { continueFinalMessage: 'reasoning' })).toBe(
      'so',
    );
  });

  it('does not change the messages', () => {
    const messages = chat('It is');
    renderChatTemplate(ROLES, messages, options);
    expect(messages).toEqual(chat('It is'));
  });

  it.each([
    [ROLES, chat(null), true, /no 'content' to continue/],
    [ROLES, chat([{ type: 'image' }]), true, /no text part to continue/],
    [ROLES, chat('x', { other: 'y' }), 'other', /a field that the chat template does not use/],
    ['{{ messages[0].content }}', chat('It is'), true, /omits or changes the last message/],
  ])('%s rejects %j', (template, messages, continueFinalMessage, message) => {
    expect(() => renderChatTemplate(template, messages, { continueFinalMessage })).toThrow(message);
  });
});

describe('the chat template of a checkpoint', () => {
  const open: Tokenizer[] = [];
  afterAll(() => Promise.all(open.map((tokenizer) => tokenizer.close())));

  async function load(
    files: Record<string, unknown>,
    more: Record<string, string> = {},
    own?: string,
  ) {
    const folder = await folderWith({ ...byteTokenizerFiles(), ...files });
    for (const [name, text] of Object.entries(more)) {
      await mkdir(path.join(folder, 'additional_chat_templates'), { recursive: true });
      await writeFile(path.join(folder, 'additional_chat_templates', `${name}.jinja`), text);
    }
    const tokenizer = await Tokenizer.load(folder, { chatTemplate: own });
    open.push(tokenizer);
    return tokenizer;
  }

  const inConfig = (chat_template: unknown) => ({ 'tokenizer_config.json': { chat_template } });
  const named = (entries: Record<string, string>) =>
    Object.entries(entries).map(([name, template]) => ({ name, template }));

  it.each<[string, Record<string, unknown>, Record<string, string>, string]>([
    ['chat_template.jinja', { 'chat_template.jinja': 'A', ...inConfig('D') }, {}, 'A'],
    ['chat_template.jinja', { 'chat_template.jinja': 'A' }, { rag: 'B' }, 'A'],
    ['additional_chat_templates', inConfig('D'), { default: 'B' }, 'B'],
    [
      'chat_template.json',
      { 'chat_template.json': { chat_template: 'C' }, ...inConfig('D') },
      {},
      'C',
    ],
    ['a string', inConfig('D'), {}, 'D'],
    ['a list', inConfig(named({ rag: 'R', default: 'D' })), {}, 'D'],
    ['an object', inConfig({ rag: 'R', default: 'D' }), {}, 'D'],
  ])('is read from %s', async (_, files, more, text) => {
    expect(await (await load(files, more)).renderChatTemplate(MESSAGES)).toBe(text);
  });

  it('is tool_use if there are tools', async () => {
    const tokenizer = await load(inConfig(named({ default: 'D', tool_use: 'T' })));
    expect(await tokenizer.renderChatTemplate(MESSAGES, { tools: [] })).toBe('T');
    expect(await tokenizer.renderChatTemplate(MESSAGES, { tools: null })).toBe('D');
  });

  it.each([
    ['a dangling link', (place: string) => symlink('/nowhere', place), 'a link to /nowhere'],
    ['a file', (place: string) => writeFile(place, ''), 'ENOTDIR'],
  ])('is rejected if additional_chat_templates is %s', async (_, make, reason) => {
    const folder = await folderWith(byteTokenizerFiles());
    await make(path.join(folder, 'additional_chat_templates'));
    await expect(Tokenizer.load(folder)).rejects.toMatchObject({
      code: 'CHECKPOINT_INVALID',
      message: expect.stringMatching(`additional_chat_templates: .*${reason}`) as string,
    });
  });

  it('can be selected by name or given as text in the call', async () => {
    const tokenizer = await load(inConfig(named({ default: 'D', rag: 'R' })));
    expect(await tokenizer.renderChatTemplate(MESSAGES, { chatTemplate: 'rag' })).toBe('R');
    expect(await tokenizer.renderChatTemplate(MESSAGES, { chatTemplate: '{{ 1 + 1 }}' })).toBe('2');
  });

  it('can be given at loading, and overridden by the call', async () => {
    const tokenizer = await load(inConfig('D'), {}, 'own');
    expect(await tokenizer.renderChatTemplate(MESSAGES)).toBe('own');
    expect(await tokenizer.renderChatTemplate(MESSAGES, { chatTemplate: 'call' })).toBe('call');
    await expect(load({}, {}, '{% nope %}')).rejects.toThrow(ConfigError);
  });

  it("must be named if none is named 'default'", async () => {
    const tokenizer = await load(inConfig(named({ rag: 'R', other: 'O' })));
    await expect(tokenizer.renderChatTemplate(MESSAGES)).rejects.toThrow(
      /chat templates are other, rag, and none is named 'default'/,
    );
    expect(await tokenizer.renderChatTemplate(MESSAGES, { chatTemplate: 'rag' })).toBe('R');
  });

  it('emits a warning if it does not compile, and an error on use', async () => {
    const emitWarning = jest.spyOn(process, 'emitWarning').mockImplementation();
    const tokenizer = await load({ 'chat_template.jinja': 'x\n{{ y|nope }}' });
    expect(emitWarning).toHaveBeenCalledWith(
      expect.stringMatching(/chat_template\.jinja: .*line 2: No filter named 'nope'/),
      'UniprocWarning',
    );
    emitWarning.mockRestore();
    await expect(tokenizer.renderChatTemplate(MESSAGES)).rejects.toThrow(CheckpointError);
    await expect(tokenizer.renderChatTemplate(MESSAGES)).rejects.toThrow(
      /line 2: No filter named 'nope'/,
    );
    expect(await tokenizer.renderChatTemplate(MESSAGES, { chatTemplate: 'own' })).toBe('own');
  });

  it('of the call is an InvalidRequestError if it does not compile', async () => {
    const tokenizer = await load({});
    await expect(tokenizer.renderChatTemplate(MESSAGES, { chatTemplate: '{{' })).rejects.toThrow(
      InvalidRequestError,
    );
  });

  it("starts the assistant's turn unless continueFinalMessage is set", async () => {
    const tokenizer = await load({ 'chat_template.jinja': ROLES });
    expect(await tokenizer.renderChatTemplate(MESSAGES)).toMatch(/<assistant>$/);
    expect(await tokenizer.renderChatTemplate(MESSAGES, { addGenerationPrompt: false })).toMatch(
      /<\/user>$/,
    );
    expect(await tokenizer.renderChatTemplate(MESSAGES, { continueFinalMessage: true })).toBe(
      '<user>Hi',
    );
  });

  describe('with splitSpecialTokens', () => {
    const template = '{% for m in messages %}{{ m.content|upper|lower }}<eos>{% endfor %}';
    const EOS = 256;
    const apply = async (
      messages: { role: string; content: string }[],
      splitSpecialTokens: boolean,
    ) => {
      const tokenizer = await load({ 'chat_template.jinja': template });
      return tokenizer.applyChatTemplate(messages, { splitSpecialTokens });
    };
    const bytes = (text: string) => [...Buffer.from(text)];

    it("encodes a user's special tokens as text", async () => {
      const messages = [{ role: 'user', content: 'a<eos>b' }];
      expect(await apply(messages, false)).toEqual([...bytes('a'), EOS, ...bytes('b'), EOS]);
      expect(await apply(messages, true)).toEqual([...bytes('a<eos>b'), EOS]);
    });

    it("keeps the assistant's special tokens, and text without any", async () => {
      const messages = [
        { role: 'user', content: 'x<eo' },
        { role: 'assistant', content: 'y<eos>' },
      ];
      const ids = [...bytes('x<eo'), EOS, ...bytes('y'), EOS, EOS];
      expect(await apply(messages, true)).toEqual(ids);
    });

    it('splits overlapping special tokens', async () => {
      const messages = [{ role: 'user', content: '<e<eos>os><eos><eos>' }];
      expect(await apply(messages, true)).toEqual([...bytes('<e<eos>os><eos><eos>'), EOS]);
    });
  });
});
