/**
 * Preloaded into every Node process of `npm run test:sanitizers`: the addons of build/Release are
 * loaded from the folder in UNIPROC_SANITIZED_BUILD instead.
 */
'use strict';

const path = require('node:path');

const release = path.resolve(__dirname, '..', '..', 'build', 'Release') + path.sep;
const { dlopen } = process;

process.dlopen = function (module, file, ...flags) {
  const sanitized = file.startsWith(release)
    ? path.join(process.env.UNIPROC_SANITIZED_BUILD, file.slice(release.length))
    : file;
  return dlopen.call(this, module, sanitized, ...flags);
};
