/** What the addon of the library has, and that it has nothing for tests (native/addon_testing). */
import { native } from '../../lib/native';

test('exports what the library calls, and nothing else', () => {
  expect(Object.keys(native()).sort()).toEqual([
    'Communicator',
    'Device',
    'Event',
    'Model',
    'OutputThread',
    'declareParameters',
    'requestLimits',
    'setErrorFactory',
  ]);
});
