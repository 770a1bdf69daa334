/**
 * scripts/build-native.js, CMakeLists.txt and binding.gyp, on an addon of two small files in place of
 * native/, in a folder with spaces in its name.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import path from 'node:path';

const ROOT = path.join(__dirname, '..', '..');
const NAME = `
  const char* name();
  const char* name() { return "small"; }
`;
const ADDON = `
  #include <napi.h>
  const char* name();
  static Napi::Object init(Napi::Env env, Napi::Object exports) {
    exports.Set("name", Napi::String::New(env, name()));
    return exports;
  }
  NODE_API_MODULE(uniproc, init)
`;
const WARNING = 'static int unused() { return 0; }\n';

/** nvcc without a GPU is enough; without nvcc no CUDA source is compiled. */
const nvcc = spawnSync('nvcc', ['--version'], { encoding: 'utf8' });
const CMAKE: string[] = [];
const BUILDERS = [
  ['CMake', CMAKE],
  ['node-gyp', ['--gyp']],
] as const;

let temporary: string;
let folder: string;

const at = (name: string) => path.join(folder, name);
const write = (name: string, content: string) => {
  mkdirSync(path.dirname(at(name)), { recursive: true });
  writeFileSync(at(name), content);
};

beforeEach(() => {
  temporary = mkdtempSync(path.join(tmpdir(), 'uniproc-build-'));
  folder = path.join(temporary, 'a path with spaces');
  for (const file of ['CMakeLists.txt', 'binding.gyp', 'package.json', 'scripts/build-native.js']) {
    write(file, readFileSync(path.join(ROOT, file), 'utf8'));
  }
  mkdirSync(at('node_modules'));
  // Its path is in the compiler's command.
  const headers = 'node_modules/node-addon-api';
  cpSync(path.join(ROOT, headers), at(headers), { recursive: true });
  symlinkSync(path.join(ROOT, 'node_modules/cmake-js'), at('node_modules/cmake-js'));
  write('native/sources.txt', 'native/addon/addon.cpp\nnative/name.cpp\n');
  write('native/addon/addon.cpp', ADDON);
  write('native/name.cpp', NAME);
});

afterEach(() => rmSync(temporary, { recursive: true, force: true }));

/** As a clone, which has the addon for tests; else the folder is like the package. */
const makeClone = () => write('native/addon_testing/addon.cpp', ADDON);

/** A CUDA backend of one file, and an empty cuBLASLt of nvcc's version. */
function addCuda(source: string): NodeJS.ProcessEnv {
  const search = 'scripts/find-cublaslt.cmake';
  write(search, readFileSync(path.join(ROOT, search), 'utf8'));
  for (const file of readFileSync(at('CMakeLists.txt'), 'utf8').match(
    /native\/(comm|base)\/\S+cpp/g,
  ) ?? [])
    write(file, '');
  write('native/ops/cuda/kernel.cu', source);
  const [, major] = /release (\d+)/.exec(nvcc.stdout) ?? [];
  write('cublas/include/cublasLt.h', '');
  write('cublas/include/cublas_api.h', `#define CUBLAS_VER_MAJOR ${major}\n`);
  write('cublas/empty.cpp', '');
  mkdirSync(at('cublas/lib'));
  const library = at(`cublas/lib/libcublasLt.so.${major}`);
  execFileSync('g++', [
    '-shared',
    `-Wl,-soname,libcublasLt.so.${major}`,
    '-o',
    library,
    at('cublas/empty.cpp'),
  ]);
  return { UNIPROC_CUBLAS_DIR: at('cublas'), CUDAARCHS: '80-virtual' };
}

function build(args: readonly string[] = [], env: NodeJS.ProcessEnv = {}) {
  const { status, stdout, stderr } = spawnSync('npm', ['run', 'build:native', '--', ...args], {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, UNIPROC_CUDA: '0', ...env },
  });
  const lines = stderr.trim().split('\n');
  return { status, output: stdout + stderr, lastLine: lines[lines.length - 1] };
}

/** The same, for a build that must succeed. */
function built(...parameters: Parameters<typeof build>) {
  const result = build(...parameters);
  if (result.status !== 0) throw new Error(result.output);
  return result;
}

/** What a new process gets from the addon. */
function nameOf(addon = 'uniproc'): string {
  const script = `console.log(require(${JSON.stringify(at(`build/Release/${addon}.node`))}).name)`;
  return execFileSync(process.execPath, ['-e', script], { encoding: 'utf8' }).trim();
}

describe.each(BUILDERS)('%s', (_, args) => {
  test('builds in a path with spaces, and leaves no object files in an installed package', () => {
    write('native/name.cpp', NAME + WARNING); // A warning is no error there.
    const { output } = built(args);
    expect(output).toContain('unused');
    expect(nameOf()).toBe('small');
    expect(readdirSync(at('build'), { recursive: true }).sort()).toEqual([
      'Release',
      'Release/uniproc.node',
    ]);
  });

  test('fails on a warning in a clone', () => {
    makeClone();
    write('native/name.cpp', NAME + WARNING);
    const { status, output } = build(args);
    expect(status).toBe(1);
    expect(output).toMatch(/error: .*unused.*Werror/);
  });
});

test('node-gyp builds with headers of Node in a path with spaces', () => {
  // Installed with Node, or downloaded by an earlier build.
  const installed = path.join(path.dirname(process.execPath), '..');
  const downloaded = path.join(homedir(), '.cache/node-gyp', process.versions.node);
  const [headers] = [installed, downloaded].filter((each) =>
    existsSync(path.join(each, 'include/node/node_api.h')),
  );
  const node = path.join(temporary, 'headers of Node');
  symlinkSync(headers, node);
  built(['--gyp', `--nodedir=${node}`]);
  expect(nameOf()).toBe('small');
});

test('a clone compiles again what has changed', () => {
  makeClone();
  built();
  expect(built().output).not.toMatch(/Building CXX/);
  write('native/name.cpp', NAME.replace('small', 'other'));
  const { output } = built();
  expect(output.match(/Building CXX.*/g)).toEqual([expect.stringContaining('name.cpp')]);
  expect([nameOf(), nameOf('uniproc_testing')]).toEqual(['other', 'other']);
});

test('a clone that was moved is built anew, also if a copy is left in the old place', () => {
  makeClone();
  built();
  const old = folder;
  folder = path.join(temporary, 'elsewhere');
  renameSync(old, folder);
  const moved = built();
  expect(moved.output).toContain(`${at('build')} was built in another folder; building it anew`);
  const original = folder;
  folder = path.join(temporary, 'copy');
  cpSync(original, folder, { recursive: true, verbatimSymlinks: true });
  write('native/name.cpp', NAME.replace('small', 'copy'));
  built();
  expect(nameOf()).toBe('copy');
  folder = original;
  expect(nameOf()).toBe('small');
});

test('a build folder of its own gets the variables of CMake', () => {
  makeClone();
  const args = ['--out', 'build/other', '--CDUNIPROC_WERROR=OFF'];
  write('native/name.cpp', NAME + WARNING);
  built(args);
  expect(readdirSync(at('build/other/Release')).sort()).toEqual([
    'uniproc.node',
    'uniproc_testing.node',
  ]);
});

(nvcc.status === 0 ? describe : describe.skip)('the CUDA backend', () => {
  const WORKING = '__global__ void kernel() {}\n';
  const BROKEN = '__global__ void kernel() { undeclared(); }\n';
  const BACKEND = 'build/Release/uniproc_cuda.so';

  /** Checks that there is a CPU addon alone, and what the last line says. */
  function expectCpuAlone({ lastLine }: ReturnType<typeof build>, reason: RegExp): void {
    expect(nameOf()).toBe('small');
    expect(existsSync(at(BACKEND))).toBe(false);
    const [, said, log] =
      /^uniproc: the CUDA backend was not built, the CPU backend was: (.*) \(see (.*)\)$/.exec(
        lastLine,
      ) ?? [];
    expect(said).toMatch(reason);
    expect(log).toBe(at('build/cuda.log'));
    expect(readFileSync(log, 'utf8').replace(/\s+/g, ' ')).toContain(said);
  }

  test('is built, left out with UNIPROC_CUDA=0, and built again', () => {
    makeClone();
    const cuda = { ...addCuda(WORKING), UNIPROC_CUDA: '' };
    for (const env of [cuda, { ...cuda, UNIPROC_CUDA: '0' }, cuda]) {
      built(CMAKE, env);
      expect(existsSync(at(BACKEND))).toBe(env === cuda);
      expect(existsSync(at('build/cuda.log'))).toBe(false);
    }
    // An error later leaves no backend of another build.
    write('native/ops/cuda/kernel.cu', BROKEN);
    expectCpuAlone(built(CMAKE, cuda), /kernel\.cu.*error.*undeclared/);
  });

  test("a compiler's error leaves an installed package the CPU backend, and says so", () => {
    const cuda = { ...addCuda(BROKEN), UNIPROC_CUDA: '' };
    expectCpuAlone(built(CMAKE, cuda), /kernel\.cu.*error.*undeclared/);
    expect(readdirSync(at('build'), { recursive: true }).sort()).toEqual([
      'Release',
      'Release/uniproc.node',
      'cuda.log',
    ]);
  });

  test('so do architectures that nvcc does not know', () => {
    const cuda = { ...addCuda(WORKING), UNIPROC_CUDA: '', CUDAARCHS: '11' };
    expectCpuAlone(built(CMAKE, cuda), /compute_11/);
  });
});

test('an nvcc that fails leaves the CPU backend, and says so', () => {
  const nvcc = path.join(temporary, 'bin', 'nvcc');
  mkdirSync(path.dirname(nvcc));
  writeFileSync(nvcc, '#!/bin/sh\necho "nvcc fatal   : no license" >&2\nexit 1\n');
  chmodSync(nvcc, 0o755);
  const env = { UNIPROC_CUDA: '', PATH: `${path.dirname(nvcc)}:${process.env.PATH}` };
  const { lastLine } = built(CMAKE, env);
  expect(nameOf()).toBe('small');
  expect(lastLine).toMatch(/^uniproc: the CUDA backend was not built, .*no license \(see .*\)$/);
});
