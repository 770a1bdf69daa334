/** Prints how many GPUs this process can open. Those that only another process may open count none. */
'use strict';

const { ops } = require('../build/Release/uniproc.node');

let count = 0;
try {
  for (;;) {
    new ops.Ops({ kind: 'cuda', index: count });
    count++;
  }
} catch {
  // That is the first there is not.
}
console.log(count);
