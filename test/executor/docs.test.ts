import { readFileSync } from 'node:fs';
import path from 'node:path';
import { ROOT, runNode } from './support';

it('the example of docs/executor.md runs', async () => {
  const page = readFileSync(path.join(ROOT, 'docs', 'executor.md'), 'utf8');
  const examples = [...page.matchAll(/^```js\n(.*?)^```/gms)].map(([, code]) => code);
  expect(examples).toHaveLength(1);
  const { code, stdout, stderr } = await runNode(examples[0]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  // Eight tokens take eight steps; one more may follow to free the finished request.
  expect(stdout).toMatch(/^(8|9|10) steps\ntrue\n$/);
});
