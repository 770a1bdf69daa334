/** package-lock.json: `npm ci` of npm 10 and 11 refuses a lock that lacks a package. */
import { readFileSync } from 'node:fs';
import path from 'node:path';

interface Locked {
  version?: string;
  resolved?: string;
  dependencies?: Record<string, string>;
  devDependencies?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
}

const root = path.join(__dirname, '..');
const read = (file: string) => JSON.parse(readFileSync(path.join(root, file), 'utf8')) as unknown;
const { packages } = read('package-lock.json') as { packages: Record<string, Locked> };

/** Whether Node would find `name` from the package at `location`, in it or in a folder above it. */
function isLocked(name: string, location: string): boolean {
  if (`${location ? `${location}/` : ''}node_modules/${name}` in packages) return true;
  const parent = Math.max(location.lastIndexOf('/node_modules/'), 0);
  return location !== '' && isLocked(name, location.slice(0, parent));
}

/** npm writes a lock without the packages of other platforms if node_modules lacks them (npm 4828). */
test('has each package that a package depends on, also those of other platforms', () => {
  const missing = Object.entries(packages).flatMap(([location, locked]) =>
    Object.keys({
      ...locked.dependencies,
      ...locked.devDependencies,
      ...locked.optionalDependencies,
    })
      .filter((name) => !isLocked(name, location))
      .map((name) => `${name}, on which ${location || 'uniproc'} depends`),
  );
  expect(missing).toEqual([]);
});

test('agrees with package.json', () => {
  const manifest = read('package.json') as Locked;
  const { dependencies, devDependencies, optionalDependencies } = packages[''];
  expect({ dependencies, devDependencies, optionalDependencies }).toEqual({
    dependencies: manifest.dependencies,
    devDependencies: manifest.devDependencies,
    optionalDependencies: manifest.optionalDependencies,
  });
});

test("names no registry, so that the user's is used", () => {
  const addresses = Object.values(packages).flatMap(({ resolved }) => resolved ?? []);
  expect(addresses).toEqual([]);
});
