/** Prints the number of GPUs that this process can open. */
'use strict';

const { Ops } = require('../build/Release/uniproc_testing.node');

let count = 0;
try {
  for (;;) {
    new Ops({ kind: 'cuda', index: count });
    count++;
  }
} catch {
  // The first index without a GPU.
}
console.log(count);
