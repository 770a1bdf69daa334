/**
 * `npm run fuzz`: campaigns of random cases against the parts that read what others write.
 *
 *     npm run fuzz -- [campaign...] [--seconds 60] [--jobs 2] [--device cpu] [--seed N] [--replay FILE]
 *
 * docs/fuzzing.md says what each campaign checks.
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
