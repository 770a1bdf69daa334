import { runNode } from '../executor/support';

test('a process that waits for a tokenizer to close does not end before, whatever answers come', async () => {
  // An answer that comes while the thread ends is a matter of microseconds: many are asked for.
  const { code, stdout } = await runNode(`
    const { Tokenizer } = require('uniproc');
    (async () => {
      for (let i = 0; i < 40; i++) {
        const tokenizer = await Tokenizer.load('models/stories');
        const answers = Array.from({ length: 20 }, () => tokenizer.encode('Once'));
        for (const answer of answers) answer.catch(() => {});
        await answers[i % 20];
        await tokenizer.close();
      }
      console.log('closed');
    })();`);
  expect({ code, stdout }).toEqual({ code: 0, stdout: 'closed\n' });
});
