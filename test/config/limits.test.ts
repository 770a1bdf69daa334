/** The limits of lib/config never exceed those of the native side: one row for each. */
import { DEFAULT_LIMITS, HARD_LIMITS, HIGHEST, MAX_INT32 } from '../../lib/config/limits';
import { ALIGNMENT } from '../../lib/engine/listMemory';
import { native } from '../../lib/native';

const { requestLimits } = native();

describe('a limit of lib/config/limits.ts equals that of native/model/request.h', () => {
  test.each([
    ['listLength', HARD_LIMITS.listLength, 2 ** 20, 'maxListLength', 2 ** 24],
    ['maxStopTokenIds', HIGHEST.maxStopTokenIds, 2 ** 20, 'maxListLength', 2 ** 24],
    ['maxBadWords', HIGHEST.maxBadWords, 2 ** 20, 'maxListLength', 2 ** 24],
    ['maxBadWordLength', HIGHEST.maxBadWordLength, 2 ** 20, 'maxListLength', 2 ** 24],
    ['maxBadWordsTokens', HIGHEST.maxBadWordsTokens, 2 ** 24, 'maxListLength', 2 ** 24],
    ['maxLogitBiases', HIGHEST.maxLogitBiases, 2 ** 20, 'maxListLength', 2 ** 24],
    ['maxAllowedTokenIds', HIGHEST.maxAllowedTokenIds, 2 ** 20, 'maxListLength', 2 ** 24],
    ['maxListMemoryBytes', HIGHEST.maxListMemoryBytes, 2 ** 31, 'maxListMemory', 2 ** 31],
    ['slotListBytes', HARD_LIMITS.slotListBytes, 4096, 'slotListBytes', 4096],
    ['alignment of lists', ALIGNMENT, 256, 'listAlignment', 256],
    ['int32', HARD_LIMITS.int32, MAX_INT32, 'maxInt32', 2 ** 31 - 1],
  ] as const)('%s', (_, ours, expected, name, nativeExpected) => {
    // Fails when either side changes without the other.
    expect({ ours, native: requestLimits[name] }).toEqual({
      ours: expected,
      native: nativeExpected,
    });
    expect(ours).toBeLessThanOrEqual(requestLimits[name]);
  });

  test('there is a row for each native limit', () => {
    expect(Object.keys(requestLimits).sort()).toEqual([
      'listAlignment',
      'maxInt32',
      'maxListLength',
      'maxListMemory',
      'slotListBytes',
    ]);
  });
});

test('a request at all default limits fits the list memory several times', () => {
  const bytes =
    4 *
    (DEFAULT_LIMITS.maxAllowedTokenIds +
      2 * DEFAULT_LIMITS.maxLogitBiases +
      DEFAULT_LIMITS.maxBadWordsTokens +
      DEFAULT_LIMITS.maxBadWords +
      DEFAULT_LIMITS.maxStopTokenIds);
  expect(8 * bytes).toBeLessThanOrEqual(DEFAULT_LIMITS.maxListMemoryBytes);
});

test('every default is within its maximum', () => {
  for (const name of Object.keys(DEFAULT_LIMITS) as (keyof typeof DEFAULT_LIMITS)[]) {
    expect([name, DEFAULT_LIMITS[name] <= HIGHEST[name]]).toEqual([name, true]);
  }
});
