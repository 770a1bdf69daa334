/** Benchmarks, examples and scripts import the package as users do. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

const root = path.join(__dirname, '..', '..');

/** What reaches below the public interface, and why it must. */
const EXCEPTIONS = [
  // All-reduce without a model: the process group and the launcher's variables.
  'bench/allReduceRank.js: dist/distributed/processGroup',
  'bench/allReduceRank.js: dist/distributed/rendezvous',
  // The device's product name without loading a model.
  'bench/findDevice.js: dist/native',
  // A port for a group of ranks.
  'bench/ranks.js: dist/executor/network',
  'scripts/soakRanks.js: dist/executor/network',
  // The HTTP server of `uniproc serve`, with a handler of the benchmark's engine.
  'bench/server.js: dist/server/nodeServer',
  // docs/options.md is made from the schemas.
  'scripts/options.js: dist/config/engineArgs',
  'scripts/options.js: dist/config/limits',
];

test('no other file of bench/, examples/ or scripts/ requires a file of dist/ or lib/', () => {
  const found = ['bench', 'examples', 'scripts'].flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.js'))
      .flatMap((file) => {
        const text = readFileSync(path.join(root, folder, file), 'utf8');
        const required = text.matchAll(/(?:require|import)\('(?:\.\.\/)+((?:dist|lib)\/[^']+)'\)/g);
        return [...required].map(([, target]) => `${folder}/${file}: ${target}`);
      }),
  );
  expect(found.sort()).toEqual([...EXCEPTIONS].sort());
});
