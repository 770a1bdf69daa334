/**
 * Ends `npm run build:ts`: writes dist/index.mjs, which exports the names of index.js one by one,
 * because not every loader finds those of a CommonJS module.
 */
'use strict';

const { writeFileSync } = require('node:fs');
const path = require('node:path');

const names = Object.keys(require('../dist')).sort();
writeFileSync(
  path.join(__dirname, '..', 'dist', 'index.mjs'),
  `import uniproc from './index.js';\n\nexport const {\n  ${names.join(',\n  ')},\n} = uniproc;\nexport default uniproc;\n`,
);
