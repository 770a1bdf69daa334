// Lets a plain Node process require the library's sources, by path or as the package `uniproc`:
// node --require this. Compiled output is cached for the next process.
'use strict';

const { createHash } = require('node:crypto');
const { mkdirSync, readFileSync, renameSync, writeFileSync } = require('node:fs');
const Module = require('node:module');
const path = require('node:path');

const root = path.resolve(__dirname, '..', '..');
const cache = path.join(root, 'node_modules', '.cache', 'uniproc-test');
const tsconfig = path.join(root, 'tsconfig.json');
const settings = readFileSync(tsconfig, 'utf8');
mkdirSync(cache, { recursive: true });

function compile(source, fileName) {
  // Loaded lazily: it takes longer than a small program runs.
  const typescript = require('typescript');
  const { config } = typescript.parseConfigFileTextToJson(tsconfig, settings);
  const { options: compilerOptions } = typescript.convertCompilerOptionsFromJson(
    config.compilerOptions,
    root,
  );
  return typescript.transpileModule(source, { fileName, compilerOptions }).outputText;
}

require.extensions['.ts'] = (module, fileName) => {
  const source = readFileSync(fileName, 'utf8');
  const hash = createHash('sha256').update(settings).update(fileName).update(source).digest('hex');
  const compiled = path.join(cache, `${hash}.js`);
  let output;
  try {
    output = readFileSync(compiled, 'utf8');
  } catch {
    output = compile(source, fileName);
    // Written atomically: several processes may do this at once.
    const own = `${compiled}.${process.pid}`;
    writeFileSync(own, output);
    renameSync(own, compiled);
  }
  module._compile(output, fileName);
};

// Examples and scripts require their own package.
const inside = ['examples', 'scripts'].map((folder) => path.join(root, folder));
const isPackage = (request, parent) =>
  request === 'uniproc' ||
  (request === '..' && inside.includes(path.dirname(parent?.filename ?? '')));

const resolveFilename = Module._resolveFilename;
Module._resolveFilename = (request, parent, ...rest) => {
  const found = isPackage(request, parent) ? path.join(root, 'lib', 'index.ts') : request;
  return resolveFilename(found, parent, ...rest);
};
