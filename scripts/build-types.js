/**
 * `npm run build:types`: bundles the declarations that lib/index.ts reaches, without what is marked
 * @internal, into index.d.ts (for CommonJS) and index.d.mts (for ES modules) of dist/, or of the folder
 * that is given, which must be below the root. Beside them, aiSdk.d.ts and aiSdk.d.mts for uniproc/ai-sdk.
 */
'use strict';

const { execFileSync } = require('node:child_process');
const { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { generateDtsBundle } = require('dts-bundle-generator');
const { TypesUsageEvaluator } = require('dts-bundle-generator/dist/types-usage-evaluator');

const ROOT = path.join(__dirname, '..');
const DIST = path.resolve(process.argv[2] ?? path.join(ROOT, 'dist'));

// The bundler walks the graph of uses anew for each pair of an unused name and an export: forty
// seconds, instead of one with each name's users kept.
const usersOf = new WeakMap();
TypesUsageEvaluator.prototype.isSymbolUsedBySymbol = function (symbol, by) {
  const from = this.getActualSymbol(symbol);
  let users = usersOf.get(from);
  if (users === undefined) {
    users = new Set([from]);
    for (const used of users)
      for (const user of this.getSymbolsUsingSymbol(used) ?? []) users.add(user);
    usersOf.set(from, users);
  }
  return users.has(this.getActualSymbol(by));
};

mkdirSync(DIST, { recursive: true });
/** One declaration file for each of lib/. */
const types = mkdtempSync(path.join(DIST, 'types-'));
try {
  const options = ['--declaration', '--emitDeclarationOnly', '--stripInternal', '--outDir', types];
  const tsc = path.join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc');
  execFileSync(process.execPath, [tsc, '-p', 'tsconfig.build.json', ...options], {
    cwd: ROOT,
    stdio: 'inherit',
  });
  const config = path.join(types, 'tsconfig.json');
  writeFileSync(
    config,
    JSON.stringify({
      extends: path.join(ROOT, 'tsconfig.json'),
      compilerOptions: { noEmit: false, types: ['node'] },
      files: ['index.d.ts'],
    }),
  );
  const output = { noBanner: true, exportReferencedTypes: false };
  const [text] = generateDtsBundle([{ filePath: path.join(types, 'index.d.ts'), output }], {
    preferredConfigPath: config,
  });
  for (const file of ['index.d.ts', 'index.d.mts']) writeFileSync(path.join(DIST, file), text);
  // Not bundled: its classes are those of the index.
  const aiSdk = readFileSync(path.join(types, 'aiSdk.d.ts'), 'utf8');
  writeFileSync(path.join(DIST, 'aiSdk.d.ts'), aiSdk);
  writeFileSync(path.join(DIST, 'aiSdk.d.mts'), aiSdk.replace("'./index'", "'./index.mjs'"));
} finally {
  rmSync(types, { recursive: true });
}
