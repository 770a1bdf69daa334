/** Exports of the library's addon, which exclude those for tests (native/addon_testing). */
import { native } from '../../lib/native';

test('exports only what the library calls', () => {
  expect(Object.keys(native()).sort()).toEqual([
    'Communicator',
    'DeviceThread',
    'Event',
    'GrammarThread',
    'ModelRunner',
    'OutputThread',
    'buildInfo',
    'declareParameters',
    'hasGpu',
    'isFirstGpuWarning',
    'readCuda',
    'requestLimits',
    'setCudaBackend',
    'setErrorFactory',
  ]);
});
