/** `uniproc doctor`, with stand-ins for the driver, the backend and its libraries. */
import { readFileSync, renameSync } from 'node:fs';
import path from 'node:path';
import { FakeCuda, type Outcome } from './support/fakeCuda';

const fake = new FakeCuda();

afterAll(() => {
  fake.remove();
});

beforeEach(() => {
  fake.putBackend(fake.usableBackend);
});

const doctor = (folders: string[], env: Record<string, string> = {}): Outcome =>
  fake.run(['dist/cli.js', 'doctor'], { LD_LIBRARY_PATH: folders.join(':'), ...env });

/** The line of a label, with the remedy below it. */
function lineOf({ stdout }: Outcome, label: string): string {
  const [line] = new RegExp(`^${label} .*(\n +fix: .*)?`, 'm').exec(stdout) ?? [''];
  return line.replace(/ +/g, ' ');
}

const allLibraries = [fake.driver, fake.cublasLt, fake.nccl];

test('prints the versions and paths of the driver, the GPU, the backend and its libraries', () => {
  const outcome = doctor(allLibraries, { FAKE_GPU_DRIVER: '13010' });
  expect(lineOf(outcome, 'driver')).toMatch(/up to CUDA 13\.1$/);
  expect(lineOf(outcome, 'cuda:0')).toContain(
    'cuda:0 NVIDIA H200, 150.0 GiB, compute capability 9.0',
  );
  expect(lineOf(outcome, 'CUDA backend')).toBe(
    `CUDA backend ${fake.backend}, CUDA 13.0 for 80, 90a-real`,
  );
  expect(lineOf(outcome, 'cuBLASLt')).toBe(`cuBLASLt 98.1.2, ${fake.cublasLt}/libcublasLt.so.98`);
  expect(lineOf(outcome, 'NCCL')).toBe(`NCCL 2.28.3, ${fake.nccl}/libnccl.so.2`);
  expect(outcome.stderr).toBe('');
});

test('opens each visible GPU, and exits with 1 if one cannot be used', () => {
  const outcome = doctor(allLibraries, { FAKE_GPU_COUNT: '2', FAKE_GPU_CAPABILITY_1: '75' });
  expect(lineOf(outcome, 'cuda:0')).toContain(
    'cannot be used: cuda:0 cannot be opened: the stand-in has cuBLASLt 980102',
  );
  expect(lineOf(outcome, 'cuda:1')).toMatch(
    /cannot be used: cuda:1, NVIDIA H200, has compute capability 7\.5; at least 8\.0 is required\n fix: use another GPU/,
  );
  expect(outcome.stdout).toMatch(
    /\nLLM\.create\(\{\}\) runs on device 'cpu'; cuda:0, cuda:1 cannot be used\n$/,
  );
  expect(outcome.status).toBe(1);
});

test.each([
  ['1', 'peer access between all GPUs'],
  ['0', 'peer access none'],
])('prints the peer access between GPUs (%s)', (peer, line) => {
  const outcome = doctor(allLibraries, { FAKE_GPU_COUNT: '3', FAKE_GPU_PEER: peer });
  expect(lineOf(outcome, 'peer access')).toBe(line);
});

test('names the command for a missing backend, and for each missing library', () => {
  const without = doctor([fake.driver]);
  expect(lineOf(without, 'CUDA backend')).toMatch(
    /requires cuBLASLt as libcublasLt\.so\.98; .*\n fix: run pip install 'nvidia-cublas==98\.\*'$/,
  );
  expect(lineOf(without, 'cuBLASLt')).toMatch(
    /libcublasLt\.so\.98 is not found\n fix: run pip install 'nvidia-cublas==98\.\*'$/,
  );
  expect(without.status).toBe(1);

  fake.putBackend(null);
  const notBuilt = doctor(allLibraries);
  expect(lineOf(notBuilt, 'CUDA backend')).toMatch(/ is missing\)\n fix: .*npm run build$/);
  expect(lineOf(notBuilt, 'cuda:0')).toMatch(/cannot be used: the CUDA backend, see below$/);
  expect(notBuilt.status).toBe(1);
});

test('exits with 1 if the driver fails', () => {
  const outcome = doctor(allLibraries, { FAKE_GPU_INIT: '803' });
  expect(lineOf(outcome, 'driver')).toMatch(
    /the NVIDIA driver fails: cuInit returns CUDA_ERROR_SYSTEM_DRIVER_MISMATCH \(803\)\n fix: run nvidia-smi/,
  );
  expect(outcome.stdout).toMatch(/; the NVIDIA driver cannot be used\n$/);
  expect(outcome.status).toBe(1);
});

test.each([
  ['no GPU', { FAKE_GPU_COUNT: '0' }],
  ['hidden GPUs', { CUDA_VISIBLE_DEVICES: '' }],
])('exits with 0 with %s, with what would run', (_, env) => {
  fake.putBackend(null);
  const outcome = doctor([fake.driver], env);
  expect(outcome.stdout).toMatch(
    /\nLLM\.create\(\{\}\) runs on device 'cpu': there is no GPU for this process\n$/,
  );
  expect(outcome.status).toBe(0);
});

test('prints the processor, its instruction set, the memory, Node.js and the addon', () => {
  const outcome = doctor([fake.driver], { FAKE_GPU_COUNT: '0' });
  expect(lineOf(outcome, 'uniproc')).toMatch(
    new RegExp(`^uniproc \\d+\\.\\d+\\.\\d+, Node\\.js ${process.version}, linux `),
  );
  expect(lineOf(outcome, 'addon')).toMatch(
    new RegExp(`^addon ${fake.addon}, built from source with (GCC|Clang) \\d+`),
  );
  expect(lineOf(outcome, 'processor')).toMatch(/, \d+ cores, (avx512bf16|avx512|avx2|plain)$/);
  const [total] =
    /^MemTotal: +(\d+) kB/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.slice(1) ?? [];
  const gib = (Number(total) / 2 ** 20).toFixed(1);
  expect(lineOf(outcome, 'memory')).toMatch(
    new RegExp(`^memory ${gib} GiB(, limited to .+ by a cgroup)?; [\\d.]+ GiB available$`),
  );
});

test('works without the addon: says so, with the command, and exits with 1', () => {
  const moved = `${fake.addon}.moved`;
  renameSync(fake.addon, moved);
  try {
    const outcome = doctor(allLibraries);
    expect(lineOf(outcome, 'addon')).toContain(fake.addon);
    expect(lineOf(outcome, 'addon')).toMatch(/\n fix: run npm run build$/);
    expect(lineOf(outcome, 'memory')).toMatch(/^memory [\d.]+ GiB$/);
    expect(outcome.stdout).toMatch(/\nnothing runs: the addon cannot be loaded\n$/);
    expect(outcome.status).toBe(1);
    expect(outcome.stderr).toBe('');
  } finally {
    renameSync(moved, fake.addon);
  }
});

test('names the option of Node.js that keeps the addon from loading', () => {
  const outcome = fake.run(['--no-addons', 'dist/cli.js', 'doctor']);
  expect(lineOf(outcome, 'addon')).toMatch(
    /cannot load .*uniproc\.node: .*; start Node\.js without --no-addons .*\n fix: start Node\.js without --no-addons/,
  );
  expect(outcome.status).toBe(1);
});

test('names no command for a platform that is not supported', () => {
  const script = `
    Object.defineProperty(process, 'arch', { value: 'riscv64' });
    Object.defineProperty(process, 'platform', { value: 'darwin' });
    process.argv.splice(1, 0, 'uniproc', 'doctor');
    require('./dist/cli');`;
  const moved = `${fake.addon}.moved`;
  renameSync(fake.addon, moved);
  try {
    const outcome = fake.run(['-e', script]);
    expect(lineOf(outcome, 'addon')).toMatch(
      /^addon uniproc runs on linux with .*, not on darwin with riscv64\n fix: run it on Linux,/,
    );
    expect(outcome.status).toBe(1);
  } finally {
    renameSync(moved, fake.addon);
  }
});

describe('in an application', () => {
  const installed = fake.install();
  const doctorOfApp = (env: Record<string, string>) =>
    fake.run(['dist/cli.js', 'doctor'], env, installed.folder);

  test('says that the addon of a platform package is prebuilt, wherever npm places it', () => {
    const outcome = doctorOfApp({ LD_LIBRARY_PATH: fake.noDriver() });
    expect(lineOf(outcome, 'addon')).toContain(`addon ${installed.addon}, prebuilt with `);
  });

  test('names the command that installs a missing CUDA package', () => {
    const outcome = doctorOfApp({ LD_LIBRARY_PATH: fake.driver });
    expect(lineOf(outcome, 'CUDA backend')).toMatch(
      process.arch === 'x64'
        ? / is missing\)\n fix: run npm install --include=optional, which adds @uniproc\/linux-x64-cuda$/
        : / is missing\)\n fix: .*npm rebuild uniproc --build-from-source$/,
    );
    expect(outcome.status).toBe(1);
  });

  test('names the command that installs a missing addon', () => {
    const moved = `${installed.addon}.moved`;
    renameSync(installed.addon, moved);
    try {
      expect(lineOf(doctorOfApp({}), 'addon')).toMatch(
        / do not exist .*\n fix: run npm install --include=optional or, with a compiler, npm rebuild uniproc --build-from-source$/,
      );
    } finally {
      renameSync(moved, installed.addon);
    }
  });
});

test('takes no arguments but --help', () => {
  const help = fake.run(['dist/cli.js', 'doctor', '--help']);
  expect(help.stdout).toMatch(/^Usage: uniproc doctor\n/);
  expect(help.status).toBe(0);
  const wrong = fake.run(['dist/cli.js', 'doctor', '--json']);
  expect(wrong.stderr).toBe('uniproc: uniproc doctor takes no arguments, not --json\n');
  expect(wrong.status).toBe(2);
  expect(fake.run(['dist/cli.js', '--help']).stdout).toContain('Usage: uniproc doctor\n');
});

test("docs/cuda.md shows the doctor's output", () => {
  const page = readFileSync(path.join(__dirname, '..', 'docs', 'cuda.md'), 'utf8');
  const [, shown] = /\$ npx uniproc doctor\n(.+?)```/s.exec(page) ?? [];
  const pattern = shown
    .replace(/[.*+?^${}()|[\]\\]/g, '\\$&')
    .replaceAll('…', '.*')
    // The stand-in requires a version that no machine has.
    .replaceAll(/(libcublasLt\\\.so\\\.|cublas==)13/g, '$198');
  const { stdout } = doctor([fake.driver, fake.nccl], { FAKE_GPU_COUNT: '2' });
  expect(stdout).toMatch(new RegExp(`^${pattern}$`));
});
