// Lets a plain Node process require the library's sources, by path or as the package `uniproc`:
// node --require this.
'use strict';

const { readFileSync } = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const typescript = require('typescript');

const root = path.resolve(__dirname, '..', '..');
const { config } = typescript.readConfigFile(path.join(root, 'tsconfig.json'), (file) =>
  readFileSync(file, 'utf8'),
);
const { options: compilerOptions } = typescript.convertCompilerOptionsFromJson(
  config.compilerOptions,
  root,
);

require.extensions['.ts'] = (module, fileName) => {
  const source = readFileSync(fileName, 'utf8');
  module._compile(
    typescript.transpileModule(source, { fileName, compilerOptions }).outputText,
    fileName,
  );
};

const resolveFilename = Module._resolveFilename;
Module._resolveFilename = (request, ...rest) =>
  resolveFilename(request === 'uniproc' ? path.join(root, 'lib', 'index.ts') : request, ...rest);
