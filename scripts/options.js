/**
 * `npm run docs`: makes docs/options.md of the options' comments (types, defaults, meanings) and of
 * the schemas that check them (values). test/config/options.test.ts fails when the page is out of date,
 * and when a default on it is not what the library does.
 */
'use strict';

const { readFileSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const ts = require('typescript');

const ROOT = path.join(__dirname, '..');
const PAGE = path.join(ROOT, 'docs', 'options.md');

/** The members of an interface in a source file: name, type, comment and default. */
function membersOf(file, name) {
  const text = readFileSync(path.join(ROOT, file), 'utf8');
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true);
  const found = source.statements.find(
    (statement) => ts.isInterfaceDeclaration(statement) && statement.name.text === name,
  );
  if (!found) throw new Error(`${file} has no interface ${name}`);
  return found.members.map((member) => {
    const [comment] = ts.getJSDocCommentsAndTags(member);
    const tag = ts.getJSDocTags(member).find(({ tagName }) => tagName.text === 'defaultValue');
    const plain = (words) => (ts.getTextOfJSDocComment(words) ?? '').replace(/\s+/g, ' ').trim();
    if (!comment || !tag) throw new Error(`${file}: ${member.name.text} has no @defaultValue`);
    return {
      name: member.name.text,
      type: member.type.getText().replace(/\s+/g, ' '),
      meaning: plain(comment.comment),
      defaultValue: plain(tag.comment),
    };
  });
}

/** A table of Markdown. Columns: the option, its type and values, its default, its meaning. */
function table(members, schema) {
  const rows = members.map(({ name, type, meaning, defaultValue }) => {
    const values = schema?.shape[name].description;
    const kind = `\`${type}\``;
    const isPlain = ['boolean', 'number', 'string'].includes(type);
    const described =
      !values || type === 'boolean' ? kind : isPlain ? `${kind}, ${values}` : values;
    return `| \`${name}\` | ${described.replaceAll('|', '\\|')} | ${defaultValue} | ${meaning} |`;
  });
  return ['| option | type | default | meaning |', '| --- | --- | --- | --- |', ...rows].join('\n');
}

/** The page, of schemas as lib/config has them. */
function render({ engineArgsSchema, limitsSchema }) {
  const own = membersOf('lib/createArgs.ts', 'CreateArgs');
  const ofEngine = membersOf('lib/config/engineArgs.ts', 'EngineArgs');
  const limits = membersOf('lib/config/limits.ts', 'RequestLimits');
  return `# Options

<!-- Made by \`npm run docs\` of lib/config/engineArgs.ts, lib/config/limits.ts and lib/createArgs.ts. -->

The options of \`LLM.create\`, all optional. An unknown option or an invalid value is a \`ConfigError\` (\`CONFIG_INVALID\`) that names both. The options of one call are in [the engine](engine.md#aborts-and-timeouts) and [chats](chat.md).

\`\`\`js
const llm = await LLM.create({ model: 'path/to/checkpoint', device: 'cuda:0', maxNumSeqs: 64 });
\`\`\`

## The engine

${table(ofEngine, engineArgsSchema)}

## Of LLM.create alone

${table(own)}

## Limits

\`limits\` bounds what one call may ask for; the error of a call that meets a bound names it. Any of them may be left out.

${table(limits, limitsSchema)}

## Environment variables

| variable | meaning |
| --- | --- |
| \`NODE_DEBUG=uniproc\` | writes what the library does to stderr, a line for each step ([troubleshooting](troubleshooting.md#what-the-library-does)) |
| \`UNIPROC_CPU_THREADS\` | threads that compute on a CPU; default: the cores, divided among the machine's ranks |
| \`UNIPROC_CHECK_SCHEDULE=1\` | ranks compare each step's schedule ([tensor parallelism](tensor-parallel.md)) |
| \`UNIPROC_ENABLE_MULTIPROCESSING\` | \`1\` is refused by \`'external_launcher'\`: each rank schedules in its own process |
| \`UNIPROC_CACHE_ROOT\` | folder of files kept between runs; default: \`$XDG_CACHE_HOME/uniproc\` or \`~/.cache/uniproc\`; empty: none ([the CUDA backend](cuda.md#matrix-products)) |
| \`UNIPROC_NCCL_LIBRARY\` | path of NCCL's shared library ([collectives](communicator.md)) |
| \`UNIPROC_CUDA=0\` | a build leaves out the CUDA backend ([the CUDA backend](cuda.md)) |
| \`UNIPROC_CUBLAS_DIR\` | where a build looks for cuBLAS beside the CUDA toolkit ([the CUDA backend](cuda.md)) |
| \`RANK\`, \`LOCAL_RANK\`, \`WORLD_SIZE\`, \`LOCAL_WORLD_SIZE\`, \`MASTER_ADDR\`, \`MASTER_PORT\` | a rank's place among others, set by the launcher ([several processes](distributed.md)) |
`;
}

if (require.main === module) {
  const { engineArgsSchema } = require('../dist/config/engineArgs');
  const { limitsSchema } = require('../dist/config/limits');
  writeFileSync(PAGE, render({ engineArgsSchema, limitsSchema }));
}

module.exports = { PAGE, render };
