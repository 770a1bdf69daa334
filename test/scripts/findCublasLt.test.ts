/** scripts/find-cublaslt.cmake, which finds cuBLASLt for the build: run by CMake as a script. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

const MODULE = path.resolve(__dirname, '..', '..', 'scripts', 'find-cublaslt.cmake');
const cmake = spawnSync('sh', ['-c', 'command -v cmake'], { encoding: 'utf8' }).stdout.trim();
const root = mkdtempSync(path.join(tmpdir(), 'uniproc-cublas-'));
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(path.join(root, 'place-'));
});

afterAll(() => {
  rmSync(root, { recursive: true });
});

/** Puts the library and the header of a version, which no machine has, below the folder. */
function put(place: string, version = 98, header = version): string {
  const library = path.join(folder, place, 'lib', `libcublasLt.so.${version}`);
  const include = path.join(folder, place, 'include');
  for (const each of [path.dirname(library), include]) mkdirSync(each, { recursive: true });
  writeFileSync(library, '');
  writeFileSync(path.join(include, 'cublasLt.h'), '');
  writeFileSync(path.join(include, 'cublas_api.h'), `#define CUBLAS_VER_MAJOR ${header}\n`);
  return library;
}

/** The library and the folder of its header. */
function find(env: Record<string, string>): [library: string, include: string] {
  const script = path.join(root, 'find.cmake');
  writeFileSync(
    script,
    `cmake_minimum_required(VERSION 3.25)
    set(UNIPROC_CUBLAS_DIR "$ENV{UNIPROC_CUBLAS_DIR}")
    set(cuda_major 98)
    set(toolkits "$ENV{CUDA_HOME}")
    include("${MODULE}")
    message("\${CUBLASLT_LIBRARY}|\${CUBLASLT_INCLUDE}")`,
  );
  const { status, stderr } = spawnSync(cmake, ['-P', script], {
    encoding: 'utf8',
    env: { PATH: root, ...env },
  });
  expect(status).toBe(0);
  const [library, include] = stderr.trim().split('|');
  return [library, include];
}

const site = 'lib/python3.12/site-packages/nvidia';

test.each([
  ['UNIPROC_CUBLAS_DIR', '.'],
  ['UNIPROC_CUBLAS_DIR', 'nvidia/cu98'],
  ['CUDA_HOME', '.'],
  ['VIRTUAL_ENV', `${site}/cu98`],
  ['VIRTUAL_ENV', `${site}/cublas`],
  ['CONDA_PREFIX', '.'],
  ['PYTHONPATH', 'nvidia/cu98'],
])('finds it below %s in %s, with its header', (variable, place) => {
  const library = put(place);
  const [found, include] = find({ [variable]: folder });
  expect(path.normalize(found)).toBe(library);
  expect(path.resolve(include)).toBe(path.resolve(library, '..', '..', 'include'));
});

test('finds it beside the python3 in PATH, and in the installation that it links to', () => {
  const library = put(`home/${site}/cu98`);
  for (const each of ['home', 'environment']) {
    mkdirSync(path.join(folder, each, 'bin'), { recursive: true });
  }
  const python = path.join(folder, 'home', 'bin', 'python3');
  writeFileSync(python, 'never run', { mode: 0o755 });
  expect(find({ PATH: path.dirname(python) })[0]).toBe(library);
  symlinkSync(python, path.join(folder, 'environment', 'bin', 'python3'));
  expect(find({ PATH: path.join(folder, 'environment', 'bin') })[0]).toBe(library);
});

test('takes UNIPROC_CUBLAS_DIR first', () => {
  put(`venv/${site}/cu98`);
  const library = put('named');
  const named = path.join(folder, 'named');
  const [found] = find({ VIRTUAL_ENV: path.join(folder, 'venv'), UNIPROC_CUBLAS_DIR: named });
  expect(found).toBe(library);
});

test('finds neither a library nor a header of another version', () => {
  put('.', 97);
  expect(find({ UNIPROC_CUBLAS_DIR: folder })[0]).toMatch(/NOTFOUND$/);
  put('.', 98, 97);
  expect(find({ UNIPROC_CUBLAS_DIR: folder })[1]).toBe('');
});
