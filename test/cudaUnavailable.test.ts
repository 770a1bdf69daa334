/**
 * Devices where CUDA cannot be used, and where its libraries are found: with stand-ins for the driver,
 * cuBLASLt and the backend, in processes of their own.
 */
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { FakeCuda } from './support/fakeCuda';

const fake = new FakeCuda();

afterAll(() => {
  fake.remove();
});

beforeEach(() => {
  fake.putBackend(fake.usableBackend);
});

/** LD_LIBRARY_PATH of the driver and of more folders. */
const loaderPath = (...folders: string[]) => ({
  LD_LIBRARY_PATH: [fake.driver, ...folders].join(':'),
});

const PRELUDE = `
  const { LLM } = require('./dist');
  process.on('warning', ({ name, code, message, detail }) => {
    console.log(JSON.stringify({ name, code, message, detail }));
  });
  const create = async (args) => {
    try {
      const llm = await LLM.create({ maxModelLen: 64, maxNumSeqs: 1, ...args });
      console.log(JSON.stringify({ device: llm.startup.device }));
      await llm.shutdown();
    } catch ({ constructor: { name }, code, message }) {
      console.log(JSON.stringify({ name, code, message }));
    }
  };`;

interface Line {
  device?: string;
  name?: string;
  code?: string;
  message?: string;
  detail?: string;
}

/** The lines of a program that creates engines. */
function lines(program: string, env: Record<string, string>): Line[] {
  const script = `${PRELUDE} (async () => { ${program} })()`;
  const { status, stdout, stderr } = fake.run(['--no-warnings', '-e', script], env);
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Line);
}

/** The message of device 'cuda' or 'cuda:N'. */
function errorOf({ LD_LIBRARY_PATH: folders, ...env }: Record<string, string>, index = 0): string {
  const { name, code, message } = fake.errorOfGpu([folders], env, index);
  expect({ name, code }).toEqual({ name: 'CudaUnavailableError', code: 'CUDA_UNAVAILABLE' });
  return message;
}

/** What the stand-in of the backend says once it is loaded. */
const LOADED = 'cuda:0 cannot be opened: the stand-in has cuBLASLt 980102; run nvidia-smi';

describe('cuBLASLt is found', () => {
  const python = ['lib', 'python3.12', 'site-packages'];
  const wheel = ['nvidia', 'cu98', 'lib'];

  test("in the loader's path", () => {
    expect(errorOf(loaderPath(fake.cublasLt))).toContain(LOADED);
  });

  test.each([
    ['UNIPROC_CUBLAS_DIR', []],
    ['UNIPROC_CUBLAS_DIR', wheel],
    ['UNIPROC_CUBLAS_DIR', ['nvidia', 'cublas', 'lib']],
    ['UNIPROC_CUBLAS_DIR', ['lib64']],
    ['CUDA_HOME', ['lib64']],
    ['CUDA_PATH', ['targets', 'x86_64-linux', 'lib']],
    ['VIRTUAL_ENV', [...python, ...wheel]],
    ['VIRTUAL_ENV', ['lib64', 'python3.9', 'site-packages', 'nvidia', 'cublas', 'lib']],
    ['CONDA_PREFIX', [...python, ...wheel]],
    ['CONDA_PREFIX', ['lib']],
    ['PYTHONPATH', wheel],
    ['PYTHONUSERBASE', [...python, ...wheel]],
    ['HOME', ['.local', ...python, ...wheel]],
  ])('below %s in %j', (variable, place) => {
    const folder = path.join(fake.folder, 'place');
    fake.put(fake.cublasLt, 'place', ...place);
    expect(errorOf({ ...loaderPath(), [variable]: folder })).toContain(LOADED);
    rmSync(folder, { recursive: true });
    expect(errorOf({ ...loaderPath(), [variable]: folder })).toContain('requires cuBLASLt');
  });

  test.each([
    ['an environment', false],
    ['the installation that it links to', true],
  ])('beside python3 in PATH: in %s', (_, isLinked) => {
    const home = path.join(fake.folder, 'home');
    const environment = path.join(fake.folder, 'environment');
    for (const each of [home, environment]) mkdirSync(path.join(each, 'bin'), { recursive: true });
    const file = path.join(home, 'bin', 'python3.12');
    writeFileSync(file, 'never run', { mode: 0o755 });
    symlinkSync(file, path.join(environment, 'bin', 'python3'));
    fake.put(fake.cublasLt, isLinked ? 'home' : 'environment', ...python, ...wheel);
    const env = { ...loaderPath(), PATH: path.join(environment, 'bin') };
    expect(errorOf(env)).toContain(LOADED);
    for (const each of [home, environment]) rmSync(each, { recursive: true });
  });

  test('beside nvcc in PATH', () => {
    const toolkit = path.join(fake.folder, 'toolkit');
    mkdirSync(path.join(toolkit, 'bin'), { recursive: true });
    writeFileSync(path.join(toolkit, 'bin', 'nvcc'), 'never run', { mode: 0o755 });
    fake.put(fake.cublasLt, 'toolkit', 'lib64');
    expect(errorOf({ ...loaderPath(), PATH: path.join(toolkit, 'bin') })).toContain(LOADED);
    rmSync(toolkit, { recursive: true });
  });

  test('elsewhere if the first file of its name is damaged', () => {
    const damaged = path.join(fake.folder, 'damaged');
    mkdirSync(damaged);
    writeFileSync(path.join(damaged, 'libcublasLt.so.98'), '');
    fake.put(fake.cublasLt, 'toolkit', 'lib64');
    const toolkit = path.join(fake.folder, 'toolkit');
    expect(errorOf({ ...loaderPath(damaged), CUDA_HOME: toolkit })).toContain(LOADED);
    const message = errorOf(loaderPath(damaged));
    expect(message).toContain('requires cuBLASLt as libcublasLt.so.98; ');
    expect(message).toContain(`${damaged}/libcublasLt.so.98: file too short`);
  });
});

describe("device 'cuda' is an error with the reason and the remedy", () => {
  test('of LLM.create', () => {
    fake.putBackend(null);
    const said = lines("await create({ device: 'cuda' })", loaderPath());
    expect(said).toEqual([
      {
        name: 'CudaUnavailableError',
        code: 'CUDA_UNAVAILABLE',
        message: expect.stringMatching(
          /^this build has no CUDA backend .*npm run build$/,
        ) as unknown,
      },
    ]);
  });

  test('without a driver', () => {
    const message = errorOf({ LD_LIBRARY_PATH: fake.noDriver() });
    expect(message).toMatch(
      /^there is no NVIDIA driver \(.*libcuda\.so\.1.*\); install it from https:.*--gpus all$/,
    );
  });

  test.each([
    ['the driver counts none', { FAKE_GPU_COUNT: '0' }],
    ['the driver finds none', { FAKE_GPU_INIT: '100' }],
  ])('without a GPU: %s', (_, env) => {
    expect(errorOf({ ...loaderPath(fake.cublasLt), ...env })).toMatch(
      /^the NVIDIA driver shows no GPU; run nvidia-smi,/,
    );
  });

  test.each(['', '-1'])('with CUDA_VISIBLE_DEVICES %j', (visible) => {
    expect(errorOf({ ...loaderPath(fake.cublasLt), CUDA_VISIBLE_DEVICES: visible })).toBe(
      `the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is '${visible}'); unset CUDA_VISIBLE_DEVICES`,
    );
  });

  test('with a driver that fails', () => {
    expect(errorOf({ ...loaderPath(fake.cublasLt), FAKE_GPU_INIT: '803' })).toMatch(
      /^the NVIDIA driver fails: cuInit returns CUDA_ERROR_SYSTEM_DRIVER_MISMATCH \(803\); run nvidia-smi/,
    );
  });

  test('with a number that the driver does not have', () => {
    const env = { ...loaderPath(fake.cublasLt), FAKE_GPU_COUNT: '2' };
    expect(errorOf(env, 2)).toBe(
      'there is no cuda:2: the NVIDIA driver shows 2 GPUs; use a number below 2',
    );
  });

  test('with a GPU that is too old', () => {
    expect(errorOf({ ...loaderPath(fake.cublasLt), FAKE_GPU_CAPABILITY: '75' })).toMatch(
      /^cuda:0, NVIDIA H200, has compute capability 7\.5; at least 8\.0 is required; use another GPU/,
    );
  });

  test('with a driver that is too old for the runtime', () => {
    expect(errorOf({ ...loaderPath(fake.cublasLt), FAKE_GPU_DRIVER: '12080' })).toMatch(
      /^the NVIDIA driver supports CUDA up to 12\.8; this build requires a driver for CUDA 13\.0 or later; update the driver/,
    );
  });

  test('without a backend', () => {
    fake.putBackend(null);
    const message = errorOf(loaderPath(fake.cublasLt));
    expect(message).toContain(`this build has no CUDA backend (${fake.backend} is missing); `);
    expect(message).toMatch(/npm run build$/);
  });

  test('with a backend that is damaged', () => {
    fake.putBackend('no shared object');
    expect(errorOf(loaderPath(fake.cublasLt))).toMatch(
      /^the CUDA backend cannot be loaded: .*uniproc_cuda\.so: (file too short|invalid ELF header); run npm run build$/,
    );
  });

  describe('with the command of an application', () => {
    const { folder, addon } = fake.install();
    const messageOf = () => {
      const script = "require('./dist/native').openGpu(0).then((e) => console.log(e.message))";
      return fake.run(['-e', script], loaderPath(fake.cublasLt), folder).stdout;
    };

    test('where the addon was built in it', () => {
      const release = path.join(folder, 'build', 'Release');
      cpSync(addon, path.join(release, 'uniproc.node'));
      const message = messageOf();
      rmSync(path.join(folder, 'build'), { recursive: true });
      expect(message).toMatch(/npm rebuild uniproc --build-from-source\n$/);
      // The package needs no toolkit.
      const install = `run rm -r '${folder}/build' && npm install --include=optional, `;
      if (process.arch === 'x64') expect(message).toContain(install);
      else expect(message).not.toContain(install);
    });

    test('where the CUDA package is missing', () => {
      expect(messageOf()).toMatch(
        process.arch === 'x64'
          ? /; run npm install --include=optional, which adds @uniproc\/linux-x64-cuda\n$/
          : /npm rebuild uniproc --build-from-source\n$/,
      );
    });

    test('where the backend of the CUDA package is damaged', () => {
      const cuda = `${path.dirname(addon)}-cuda`;
      mkdirSync(cuda);
      writeFileSync(path.join(cuda, 'uniproc_cuda.so'), 'no shared object');
      const message = messageOf();
      rmSync(cuda, { recursive: true });
      expect(message).toContain(`the CUDA backend cannot be loaded: ${cuda}/uniproc_cuda.so: `);
      expect(message).toContain(`; delete ${cuda} and run npm install --include=optional\n`);
    });
  });

  test('with a backend of another version', () => {
    fake.putBackend(readFileSync(path.join(fake.nccl, 'libnccl.so.2')));
    expect(errorOf(loaderPath(fake.cublasLt))).toBe(
      `${fake.backend} does not match the addon; run npm run build`,
    );
  });

  test('without cuBLASLt', () => {
    expect(errorOf({ ...loaderPath(), UNIPROC_CUBLAS_DIR: '/nowhere' })).toBe(
      "the CUDA backend requires cuBLASLt as libcublasLt.so.98; it is not in the loader's search path, " +
        'a CUDA toolkit (CUDA_HOME, CUDA_PATH, /usr/local/cuda*, /opt/cuda), the active Python ' +
        "environment or UNIPROC_CUBLAS_DIR ('/nowhere'); run pip install 'nvidia-cublas==98.*'",
    );
  });

  test('with a command that pip does not refuse, where the environment is externally managed', () => {
    const managed = path.join(fake.folder, 'managed');
    mkdirSync(path.join(managed, 'bin'), { recursive: true });
    mkdirSync(path.join(managed, 'lib', 'python3.12'), { recursive: true });
    writeFileSync(path.join(managed, 'bin', 'python3'), 'never run', { mode: 0o755 });
    const env = { ...loaderPath(), PATH: path.join(managed, 'bin') };
    expect(errorOf(env)).toMatch(/; run pip install 'nvidia-cublas==98\.\*'$/);
    writeFileSync(path.join(managed, 'lib', 'python3.12', 'EXTERNALLY-MANAGED'), '');
    const message = errorOf(env);
    rmSync(managed, { recursive: true });
    expect(message).toMatch(
      /; run pip install --user --break-system-packages 'nvidia-cublas==98\.\*'$/,
    );
  });

  test.each([
    ['UNIPROC_CUBLAS_DIR', () => ({ ...loaderPath(), UNIPROC_CUBLAS_DIR: fake.cublasLt12 })],
    ["the loader's path", () => loaderPath(fake.cublasLt12)],
  ])('with another version of cuBLASLt in %s', (_, env) => {
    const message = errorOf(env());
    expect(message).toContain('requires cuBLASLt as libcublasLt.so.98; there is another version: ');
    expect(message).toContain(`${fake.cublasLt12}/libcublasLt.so.12`);
    expect(message).toMatch(/; run pip install 'nvidia-cublas==98\.\*'$/);
  });

  test('with a cuBLASLt whose name is not its soname', () => {
    const folder = path.join(fake.folder, 'renamed');
    fake.put(fake.cublasLt12, 'renamed');
    symlinkSync('libcublasLt.so.12', path.join(folder, 'libcublasLt.so.98'));
    const message = errorOf({ ...loaderPath(), UNIPROC_CUBLAS_DIR: folder });
    expect(message).toContain(`with ${folder}/libcublasLt.so.98: libcublasLt.so.98: cannot open`);
  });
});

describe('without `device`', () => {
  test('a GPU that cannot be used is one warning, and the model runs on the CPU', () => {
    fake.putBackend(null);
    const program = `
      await Promise.all([create({}), create({})]);
      await create({});`;
    const [warning, ...rest] = lines(program, loaderPath(fake.cublasLt)).sort(
      (a, b) => Number(a.device !== undefined) - Number(b.device !== undefined),
    );
    expect(rest).toEqual([{ device: 'cpu' }, { device: 'cpu' }, { device: 'cpu' }]);
    expect(warning).toMatchObject({ name: 'CudaWarning', code: 'UNIPROC_CUDA_UNAVAILABLE' });
    expect(warning.message).toMatch(
      /^a GPU cannot be used, so the model runs on the CPU: this build has no CUDA backend .*npm run build$/,
    );
    expect(warning.detail).toContain('npx uniproc doctor');
  });

  test('the warning is one for all threads of the process', () => {
    fake.putBackend(null);
    const program = `
      await create({});
      const { Worker } = require('node:worker_threads');
      const source = \`
        const { LLM } = require('./dist');
        process.on('warning', ({ code }) => console.log(JSON.stringify({ code })));
        LLM.create({ maxModelLen: 64, maxNumSeqs: 1 }).then((llm) => llm.shutdown());\`;
      await new Promise((resolve) => new Worker(source, { eval: true }).on('exit', resolve));`;
    const said = lines(program, loaderPath());
    expect(said.map(({ code, device }) => code ?? device).sort()).toEqual([
      'UNIPROC_CUDA_UNAVAILABLE',
      'cpu',
    ]);
  });

  test.each([
    ['a driver that fails', { FAKE_GPU_INIT: '999' }],
    ['a GPU that is too old', { FAKE_GPU_CAPABILITY: '75' }],
    ['a GPU that cannot be opened', {}],
  ])('%s is a warning', (_, env) => {
    const said = lines('await create({})', { ...loaderPath(fake.cublasLt), ...env });
    expect(said.map(({ code, device }) => code ?? device).sort()).toEqual([
      'UNIPROC_CUDA_UNAVAILABLE',
      'cpu',
    ]);
  });

  test.each([
    ['no driver', () => ({ LD_LIBRARY_PATH: fake.noDriver() })],
    ['no GPU', () => ({ ...loaderPath(), FAKE_GPU_COUNT: '0' })],
    ["a toolkit's stub of the driver", () => ({ ...loaderPath(), FAKE_GPU_INIT: '34' })],
    ['hidden GPUs', () => ({ ...loaderPath(), CUDA_VISIBLE_DEVICES: '' })],
  ])('%s is no warning', (_, env) => {
    fake.putBackend(null);
    expect(lines('await create({})', env())).toEqual([{ device: 'cpu' }]);
  });

  test("device 'cpu' asks for no GPU", () => {
    fake.putBackend(null);
    expect(lines("await create({ device: 'cpu' })", loaderPath())).toEqual([{ device: 'cpu' }]);
  });
});

test('the JavaScript thread does not wait for the driver', () => {
  fake.putBackend(null);
  // The driver starts only when a timer of the JavaScript thread has removed the file.
  const file = path.join(fake.folder, 'wait');
  const program = `
    require('node:fs').writeFileSync('${file}', '');
    const creating = create({});
    setTimeout(() => require('node:fs').rmSync('${file}'), 50);
    await creating;`;
  const said = lines(program, { ...loaderPath(), FAKE_GPU_WAIT: file });
  expect(said).toContainEqual({ device: 'cpu' });
});
