/** Prints how many GPUs this process can open. Those that only another process may open count none. */
'use strict';

const { Ops } = require('../build/Release/uniproc_testing.node');

let count = 0;
try {
  for (;;) {
    new Ops({ kind: 'cuda', index: count });
    count++;
  }
} catch {
  // That is the first there is not.
}
console.log(count);
