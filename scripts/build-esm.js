/**
 * Ends `npm run build:ts`: writes index.mjs into dist/ or the folder that is given, which exports the
 * names of index.js one by one, because not every loader finds those of a CommonJS module.
 */
'use strict';

const { writeFileSync } = require('node:fs');
const path = require('node:path');

const folder = path.resolve(process.argv[2] ?? path.join(__dirname, '..', 'dist'));
const names = Object.keys(require(folder)).sort();
writeFileSync(
  path.join(folder, 'index.mjs'),
  `import uniproc from './index.js';\n\nexport const {\n  ${names.join(',\n  ')},\n} = uniproc;\nexport default uniproc;\n`,
);
