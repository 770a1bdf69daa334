/**
 * `npm run fuzz`: fuzzing campaigns against the code that reads untrusted input.
 *
 *     npm run fuzz -- [campaign...] [--seconds 60] [--jobs 2] [--device cpu] [--seed N] [--replay FILE]
 *
 * docs/fuzzing.md describes what each campaign checks.
 */
'use strict';

require('../test/executor/requireTypescript');
require('./main.ts')
  .main(process.argv.slice(2))
  .then(
    (exitCode) => (process.exitCode = exitCode),
    (error) => {
      console.error(error);
      process.exitCode = 2;
    },
  );
