/**
 * Ends `npm run build:ts`: writes index.mjs and aiSdk.mjs into dist/ or the folder that is given, which
 * export the names of index.js and aiSdk.js one by one, because not every loader finds those of a
 * CommonJS module.
 */
'use strict';

const { writeFileSync } = require('node:fs');
const path = require('node:path');

const folder = path.resolve(process.argv[2] ?? path.join(__dirname, '..', 'dist'));
for (const module of ['index', 'aiSdk']) {
  const names = Object.keys(require(path.join(folder, module))).sort();
  writeFileSync(
    path.join(folder, `${module}.mjs`),
    `import uniproc from './${module}.js';\n\nexport const {\n  ${names.join(',\n  ')},\n} = uniproc;\nexport default uniproc;\n`,
  );
}
