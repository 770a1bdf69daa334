/**
 * The rooms of lib/ and native/ and the arrows between them: which room may import which. ESLint
 * (eslint.config.js) holds lib/ to it, scripts/check-includes.js native/.
 */
'use strict';

/** Lines that a file of lib/ may have. */
const MAX_LINES = 400;

// --- lib/ ---

/** Import each other and nothing above them. */
const SERVICES = [
  'common',
  'config',
  'contract',
  'model',
  'tokenizer',
  'grammar',
  'reply',
  'distributed',
  'hub',
];

/**
 * Rooms of lib/: folders of that name, or `files` beside the folders. `imports` beside its own files.
 * The engine knows no worker: what crosses between them is the contract's. Of the native layer it uses
 * the thread that fills the masks of structured output.
 */
const LIB_ROOMS = {
  common: {
    files: [
      'abortSignal',
      'callErrors',
      'deprecation',
      'errors',
      'hubErrors',
      'log',
      'nativeError',
      'realm',
      'requestOutput',
      'slicedWork',
      'timer',
      'uniprocError',
    ],
    imports: [],
  },
  config: { imports: SERVICES },
  contract: { imports: SERVICES },
  model: { imports: SERVICES },
  tokenizer: { imports: SERVICES },
  grammar: { imports: SERVICES },
  reply: { imports: SERVICES },
  distributed: { imports: SERVICES },
  hub: { imports: SERVICES },
  native: { imports: SERVICES },
  worker: { imports: [...SERVICES, 'native'] },
  executor: { imports: [...SERVICES, 'native', 'worker'] },
  engine: { imports: [...SERVICES, 'native', 'executor'] },
  llm: {
    files: ['llm', 'createArgs', 'embedding', 'progressBar'],
    imports: [...SERVICES, 'native', 'worker', 'executor', 'engine'],
  },
  server: { imports: [...SERVICES, 'native', 'worker', 'executor', 'engine', 'llm'] },
  /** What users import and run. */
  entry: {
    files: [
      'index',
      'aiSdk',
      'aiSdkMessages',
      'cli',
      'doctor',
      'chatCommand',
      'inspectCommand',
      'pullCommand',
    ],
    imports: [...SERVICES, 'native', 'worker', 'executor', 'engine', 'llm', 'server'],
  },
};

/** From the top down: each imports those after it, and the services. */
const LIB_ORDER = ['llm', 'engine', 'executor', 'worker', 'native'];

/** Globs of a room's files. */
function filesOf(room) {
  const { files } = LIB_ROOMS[room];
  return files ? files.map((name) => `lib/${name}.ts`) : [`lib/${room}/**/*.ts`];
}

/** The room of a file by its path from the root; undefined when it has none. */
function libRoomOf(file) {
  return Object.keys(LIB_ROOMS).find((room) => {
    const { files } = LIB_ROOMS[room];
    return files
      ? files.some((name) => file === `lib/${name}.ts`)
      : file.startsWith(`lib/${room}/`);
  });
}

/** Rules for the files of a room. */
function rulesFor(room) {
  const allowed = LIB_ROOMS[room].imports;
  const message = `lib's room '${room}' may import only ${allowed.join(', ') || 'itself'} (scripts/rooms.js)`;
  const forbidden = Object.keys(LIB_ROOMS).filter(
    (other) => other !== room && !allowed.includes(other),
  );
  const regex = importsOf(forbidden, LIB_ROOMS[room].files !== undefined);
  const literal = `Literal[value=/${regex.replaceAll('/', '\\/')}/]`;
  return {
    '@typescript-eslint/no-restricted-imports': ['error', { patterns: [{ regex, message }] }],
    'no-restricted-syntax': [
      'error',
      { selector: `ImportExpression > ${literal}`, message },
      { selector: `TSImportType ${literal}`, message },
      { selector: `CallExpression[callee.name='require'] > ${literal}`, message },
    ],
  };
}

/** What imports of the rooms look like, from a file beside the folders or from one within. */
function importsOf(rooms, isBeside) {
  const targets = rooms.flatMap((room) =>
    LIB_ROOMS[room].files
      ? LIB_ROOMS[room].files.map((name) => `${name}(\\.js)?`)
      : [`${room}(/.*)?`],
  );
  // '..' itself is lib/index.ts.
  const entry = rooms.includes('entry') ? '|^\\.\\.?(/\\.\\.)*/?$' : '';
  return `^(.*/)?${isBeside ? '\\./' : '\\.\\./'}(${targets.join('|')})$${entry}`;
}

/** ESLint's configuration of the arrows and of the length of files. */
function eslintConfigs() {
  return [
    ...Object.keys(LIB_ROOMS).map((room) => ({ files: filesOf(room), rules: rulesFor(room) })),
    {
      files: ['lib/**/*.ts'],
      rules: { 'max-lines': ['error', MAX_LINES] },
    },
  ];
}

// --- native/ ---

/** Rooms of native/, from the ground up. Each may include those before it. */
const NATIVE_ROOMS = [
  'base',
  'grammar',
  'backend',
  'comm',
  'ops',
  'model',
  'runner',
  'runtime',
  'addon',
  'addon_testing',
];

/** The room of a file by its path from native/; undefined when it has none. */
function nativeRoomOf(file) {
  return NATIVE_ROOMS.find((room) => file.startsWith(`${room}/`));
}

/** Whether `file` may include `included`; both are paths from native/. */
function mayInclude(file, included) {
  const from = nativeRoomOf(file);
  const to = nativeRoomOf(included);
  if (from === undefined || to === undefined) return false;
  if (from === to) return true;
  return NATIVE_ROOMS.indexOf(to) < NATIVE_ROOMS.indexOf(from);
}

module.exports = {
  eslintConfigs,
  LIB_ORDER,
  libRoomOf,
  MAX_LINES,
  mayInclude,
  NATIVE_ROOMS,
  nativeRoomOf,
};
