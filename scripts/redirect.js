/**
 * Preloaded into every Node process of `npm run test:sanitizers` and `npm run test:libcxx`: the addons
 * of build/Release are loaded from the folder in UNIPROC_TESTED_BUILD instead.
 */
'use strict';

const path = require('node:path');

const release = path.resolve(__dirname, '..', 'build', 'Release') + path.sep;
const { dlopen } = process;

process.dlopen = function (module, file, ...flags) {
  const tested = file.startsWith(release)
    ? path.join(process.env.UNIPROC_TESTED_BUILD, file.slice(release.length))
    : file;
  return dlopen.call(this, module, tested, ...flags);
};
