import { SamplingParams } from '../../lib/config/samplingParams';
import { InvalidRequestError, InvalidStateError } from '../../lib/errors';
import {
  type ModelLimits,
  type ModelSpec,
  native,
  type NativeDeviceThread,
  type NativeModelRunner,
  type NativeRequest,
  type StepBuffers,
} from '../../lib/native';
import { InputBatch } from '../../lib/worker/inputBatch';
import {
  emptySchedulerOutput,
  type NewRequestData,
  type SchedulerOutput,
} from '../../lib/contract/schedulerOutput';
import { plainSpec } from '../support/plainSpec';

const MAX_NUM_SEQS = 4;

const SPEC: ModelSpec = {
  dtype: 'float32',
  vocabSize: 100,
  hiddenSize: 8,
  intermediateSize: 8,
  numLayers: 1,
  numHeads: 1,
  numKvHeads: 1,
  headDim: 8,
  rmsNormEps: 1e-5,
  ...plainSpec(1, 8),
  tieWordEmbeddings: true,
  weightFormats: {},
};

const LIMITS: ModelLimits = {
  maxNumSeqs: MAX_NUM_SEQS,
  maxNumBatchedTokens: 64,
  maxModelLen: 64,
  blockSize: 16,
  numSteps: 2,
  maxLogprobs: 5,
  listMemoryBytes: 2 ** 20,
  enforceEager: true,
};

/** A fake device that records slot changes and checks as the device does. */
class SlotRecorder {
  readonly calls: [string, number, NativeRequest?][] = [];

  constructor(private readonly model: NativeModelRunner) {}

  checkRequest(request: NativeRequest): void {
    this.model.checkRequest(request);
  }

  addRequest(slot: number, request: NativeRequest): void {
    this.calls.push(['add', slot, request]);
  }

  removeRequest(slot: number): void {
    this.calls.push(['remove', slot]);
  }
}

function makeBuffers(): StepBuffers {
  const names = ['slots', 'numComputedTokens', 'numScheduledTokens', 'sampledRows'] as const;
  const perRow = Object.fromEntries(names.map((name) => [name, new Int32Array(MAX_NUM_SEQS)]));
  return {
    ...perRow,
    promptLogprobRows: new Int32Array(MAX_NUM_SEQS),
    blockUpdates: new Int32Array(3 * 16),
  } as unknown as StepBuffers;
}

function newRequest(reqId: string, numTokens: number, options = {}): NewRequestData {
  return {
    reqId,
    promptTokenIds: Int32Array.from({ length: numTokens }, (_, i) => i),
    samplingParams: new SamplingParams(options),
    stopTokenIds: [2],
    badWordsTokenIds: [],
    seed: 1n,
    blockIds: [10, 11],
    numComputedTokens: 0,
  };
}

function schedule(
  numScheduledTokens: Record<string, number>,
  changes: Partial<SchedulerOutput> = {},
): SchedulerOutput {
  return {
    ...emptySchedulerOutput(),
    numScheduledTokens: new Map(Object.entries(numScheduledTokens)),
    ...changes,
  };
}

/** The named requests continue from `numComputedTokens`, with blocks appended. */
function cached(
  entries: Record<string, { computed: number; blocks?: number[]; resumed?: number[] }>,
): Pick<SchedulerOutput, 'scheduledCachedReqs'> {
  const reqIds = Object.keys(entries);
  const resumed = reqIds.filter((reqId) => entries[reqId].resumed);
  return {
    scheduledCachedReqs: {
      reqIds,
      resumedReqIds: new Set(resumed),
      newBlockIds: reqIds.map((reqId) => entries[reqId].blocks ?? null),
      numComputedTokens: reqIds.map((reqId) => entries[reqId].computed),
      allTokenIds: new Map(
        resumed.map((reqId) => [reqId, Int32Array.from(entries[reqId].resumed ?? [])]),
      ),
    },
  };
}

describe('InputBatch', () => {
  let nativeDevice: NativeDeviceThread;
  let model: NativeModelRunner;
  let device: SlotRecorder;
  let batch: InputBatch;
  let buffers: StepBuffers;

  beforeAll(async () => {
    nativeDevice = new (native().DeviceThread)('cpu', 0, 1);
    await nativeDevice.open();
    model = new (native().ModelRunner)(nativeDevice, SPEC, LIMITS, null);
  });

  afterAll(async () => {
    await model.shutdown();
    await nativeDevice.shutdown();
  });

  beforeEach(() => {
    device = new SlotRecorder(model);
    batch = new InputBatch(device as unknown as NativeModelRunner, MAX_NUM_SEQS);
    buffers = makeBuffers();
  });

  const admit = (...requests: NewRequestData[]) =>
    batch.prepare(
      schedule(Object.fromEntries(requests.map((r) => [r.reqId, r.promptTokenIds.length])), {
        scheduledNewReqs: requests,
      }),
      buffers,
    );

  it('writes one row per scheduled request, in schedule order', () => {
    const step = admit(newRequest('a', 5), newRequest('b', 3));
    expect(step.reqIds).toEqual(['a', 'b']);
    expect(step.reqIdToIndex.get('b')).toBe(1);
    expect([...buffers.numScheduledTokens.subarray(0, 2)]).toEqual([5, 3]);
    expect([...buffers.numComputedTokens.subarray(0, 2)]).toEqual([0, 0]);
  });

  it('assigns each request a slot and passes its tokens and blocks to the device', () => {
    admit(newRequest('a', 5), newRequest('b', 3));
    const [a, b] = device.calls;
    expect(a[1]).not.toBe(b[1]);
    expect([...(b[2]?.tokenIds ?? [])]).toEqual([0, 1, 2]);
    expect([...(b[2]?.blockIds ?? [])]).toEqual([10, 11]);
    expect([...buffers.slots.subarray(0, 2)]).toEqual([a[1], b[1]]);
  });

  it('samples only rows that reach all their tokens', () => {
    const long = newRequest('long', 40);
    const step = batch.prepare(
      schedule({ long: 16, short: 3 }, { scheduledNewReqs: [long, newRequest('short', 3)] }),
      buffers,
    );
    expect(step.numSampled).toBe(1);
    expect(buffers.sampledRows[0]).toBe(1);
    expect([...step.offsets]).toEqual([0, 0, 1]);

    const last = batch.prepare(schedule({ long: 24 }, cached({ long: { computed: 16 } })), buffers);
    expect(last.numSampled).toBe(1);
    expect(buffers.numComputedTokens[0]).toBe(16);
  });

  it('samples every decode step without knowing the token', () => {
    admit(newRequest('a', 3));
    const step = batch.prepare(schedule({ a: 1 }, cached({ a: { computed: 3 } })), buffers);
    expect(step.numSampled).toBe(1);
    expect(device.calls).toHaveLength(1);
  });

  it('sends appended blocks as (slot, index, block)', () => {
    admit(newRequest('a', 3));
    const changes = cached({ a: { computed: 3, blocks: [20, 21] } });
    const step = batch.prepare(schedule({ a: 1 }, changes), buffers);
    const slot = device.calls[0][1];
    expect(step.numBlockUpdates).toBe(2);
    expect([...buffers.blockUpdates.subarray(0, 6)]).toEqual([slot, 2, 20, slot, 3, 21]);
  });

  it('sends the blocks of each group of layers to the block table of its own', () => {
    batch = new InputBatch(device as unknown as NativeModelRunner, MAX_NUM_SEQS, 2);
    admit(newRequest('other', 3), newRequest('a', 3)); // two blocks: one of each group
    const changes = cached({ a: { computed: 3, blocks: [20, 21, 22, 23] } });
    const step = batch.prepare(schedule({ a: 1 }, changes), buffers);
    const slot = device.calls[1][1];
    expect(step.numBlockUpdates).toBe(4);
    expect([...buffers.blockUpdates.subarray(0, 12)]).toEqual(
      [
        [slot, 1, 20],
        [MAX_NUM_SEQS + slot, 1, 21],
        [slot, 2, 22],
        [MAX_NUM_SEQS + slot, 2, 23],
      ].flat(),
    );
  });

  it('frees the slot of a finished request before admitting another', () => {
    const requests = ['a', 'b', 'c', 'd'].map((reqId) => newRequest(reqId, 2));
    admit(...requests);
    batch.prepare(
      schedule({ e: 2 }, { finishedReqIds: ['b'], scheduledNewReqs: [newRequest('e', 2)] }),
      buffers,
    );
    const removed = device.calls.find(([call]) => call === 'remove');
    expect(device.calls.at(-1)?.[1]).toBe(removed?.[1]);
    expect(batch.size).toBe(4);
  });

  it('ignores the finish of a request that it never had', () => {
    batch.prepare(schedule({}, { finishedReqIds: ['ghost'] }), buffers);
    expect(device.calls).toEqual([]);
  });

  it('keeps a preempted request, frees its slot and resumes it with all its tokens', () => {
    admit(newRequest('a', 3));
    batch.prepare(schedule({}, { preemptedReqIds: ['a'] }), buffers);
    expect(device.calls.at(-1)?.[0]).toBe('remove');
    expect(batch.size).toBe(1);

    const changes = cached({ a: { computed: 0, blocks: [30], resumed: [0, 1, 2, 7, 8] } });
    const step = batch.prepare(schedule({ a: 5 }, changes), buffers);
    const request = device.calls.at(-1)?.[2];
    expect([...(request?.tokenIds ?? [])]).toEqual([0, 1, 2, 7, 8]);
    expect(request?.numPromptTokens).toBe(3);
    expect([...(request?.blockIds ?? [])]).toEqual([30]);
    expect(step.numSampled).toBe(1);
  });

  it("requests each prompt position's logprobs once, also after a preemption", () => {
    const request = newRequest('a', 10, { promptLogprobs: 2 });
    const first = batch.prepare(schedule({ a: 6 }, { scheduledNewReqs: [request] }), buffers);
    expect(first.promptLogprobs).toEqual([{ reqId: 'a', start: 0, count: 6, numLogprobs: 2 }]);

    batch.prepare(schedule({}, { preemptedReqIds: ['a'] }), buffers);
    const tokens = Array.from({ length: 10 }, (_, i) => i);
    const changes = cached({ a: { computed: 0, blocks: [1], resumed: tokens } });
    const again = batch.prepare(schedule({ a: 10 }, changes), buffers);
    // Positions 6, 7 and 8 are new; the last position's logprobs are the sampled token's.
    expect(again.promptLogprobs).toEqual([{ reqId: 'a', start: 6, count: 3, numLogprobs: 2 }]);

    const decode = batch.prepare(schedule({ a: 1 }, cached({ a: { computed: 10 } })), buffers);
    expect(decode.numPromptLogprobRows).toBe(0);
  });

  it('reports the most logprobs requested by a sampled row', () => {
    expect(admit(newRequest('a', 2)).numLogprobs).toBe(-1);
    const more = [newRequest('b', 2, { logprobs: 3 }), newRequest('c', 2, { logprobs: 0 })];
    expect(admit(...more).numLogprobs).toBe(3);
  });

  it('reuses the request list while the batch is unchanged', () => {
    const first = admit(newRequest('a', 3));
    const second = batch.prepare(schedule({ a: 1 }, cached({ a: { computed: 3 } })), buffers);
    expect(second.reqIds).toBe(first.reqIds);
    expect(second.reqIdToIndex).toBe(first.reqIdToIndex);
  });

  it.each<[string, () => void]>([
    [
      'a request beyond maxNumSeqs',
      () => admit(...'abcde'.split('').map((id) => newRequest(id, 1))),
    ],
    ['a new request it knows', () => admit(newRequest('a', 1), newRequest('a', 1))],
    ['a request it does not know', () => batch.prepare(schedule({ ghost: 1 }), buffers)],
    [
      'a preempted request without its tokens',
      () => {
        admit(newRequest('a', 1));
        batch.prepare(schedule({}, { preemptedReqIds: ['a'] }), buffers);
        batch.prepare(schedule({ a: 1 }), buffers);
      },
    ],
    [
      'blocks of a preempted request that does not resume',
      () => {
        admit(newRequest('a', 1));
        const changes = cached({ a: { computed: 1, blocks: [20] } });
        batch.prepare(schedule({}, { ...changes, preemptedReqIds: ['a'] }), buffers);
      },
    ],
    [
      'blocks that are not of each group of layers',
      () => {
        batch = new InputBatch(device as unknown as NativeModelRunner, MAX_NUM_SEQS, 2);
        admit(newRequest('a', 1));
        batch.prepare(schedule({ a: 1 }, cached({ a: { computed: 1, blocks: [20] } })), buffers);
      },
    ],
  ])('refuses %s', (_, act) => {
    expect(act).toThrow(InvalidStateError);
  });

  it("flattens a request's lists", () => {
    const request = {
      ...newRequest('a', 2, { logitBias: { 5: 1.5 }, allowedTokenIds: [4, 5], topK: -1 }),
      badWordsTokenIds: [[1, 2], [3]],
    };
    admit(request);
    const sampling = device.calls[0][2]?.sampling;
    expect(sampling?.topK).toBe(0);
    expect([...(sampling?.logitBiasTokenIds ?? [])]).toEqual([5]);
    expect([...(sampling?.logitBiases ?? [])]).toEqual([1.5]);
    expect([...(sampling?.allowedTokenIds ?? [])]).toEqual([4, 5]);
    expect([...(sampling?.badWordsTokenIds ?? [])]).toEqual([1, 2, 3]);
    expect([...(sampling?.badWordsEnds ?? [])]).toEqual([2, 3]);
    expect([...(sampling?.stopTokenIds ?? [])]).toEqual([2]);
  });

  describe('a new request that the device would not take', () => {
    const bad = 2 ** 32 + 5; // token 5 in an Int32Array
    const params = (changes: object) => ({
      samplingParams: Object.assign(
        Object.create(SamplingParams.prototype) as SamplingParams,
        new SamplingParams(),
        changes,
      ),
    });
    const faults: [string, RegExp, object][] = [
      [
        'minTokens of 2 ** 31',
        /minTokens must be a 32-bit integer/,
        params({ minTokens: 2 ** 31 }),
      ],
      ['a bad word without tokens', /bad word 1 .*no token/, { badWordsTokenIds: [[1], [], [2]] }],
      ['a hole in its bad words', /./, { badWordsTokenIds: [[1], , [2]] }], // eslint-disable-line no-sparse-arrays
      ['a hole in a bad word', /badWords names token undefined/, { badWordsTokenIds: [[1, , 2]] }], // eslint-disable-line no-sparse-arrays
      ['a fraction in a bad word', /badWords names token 1.5/, { badWordsTokenIds: [[1.5]] }],
      [
        'a stop token of 2 ** 32 + 5',
        /stopTokenIds names token 4294967301/,
        { stopTokenIds: [bad] },
      ],
      ['a stop token that is NaN', /stopTokenIds names token NaN/, { stopTokenIds: [NaN] }],
      [
        'an allowed token of -1',
        /allowedTokenIds\[0\] names token -1/,
        params({ allowedTokenIds: [-1] }),
      ],
      [
        'an allowed token as text',
        /allowedTokenIds names token 7/,
        params({ allowedTokenIds: ['7'] }),
      ],
      [
        'a bias of a token beyond the vocabulary',
        /names token 100/,
        params({ logitBias: new Map([[100, 1]]) }),
      ],
      [
        'a bias of infinitely many tokens',
        /logitBias names token Infinity/,
        params({ logitBias: new Map([[Infinity, 1]]) }),
      ],
      [
        'a bias that is no number',
        /logitBias of token 3 is x/,
        params({ logitBias: new Map([[3, 'x']]) }),
      ],
      ['no biases', /./, params({ logitBias: undefined })],
      ['a seed of 65 bits', /seed must be/, { seed: 2n ** 64n }],
      ['a seed that is a number', /seed must be/, { seed: 3 }],
      [
        'more logprobs than there are',
        /numLogprobs is 6; it must be from -1 \(none\) to maxLogprobs, 5/,
        params({ logprobs: 6 }),
      ],
      ['topK that is NaN', /topK must be/, params({ topK: NaN })],
      [
        'a temperature that is none',
        /temperature must be a number/,
        params({ temperature: undefined }),
      ],
      [
        'a token beyond the vocabulary',
        /names token 100/,
        { promptTokenIds: Int32Array.of(1, 100) },
      ],
      ['no prompt', /prompt of 0/, { promptTokenIds: new Int32Array() }],
      ['a prompt longer than the model takes', /65 tokens/, { promptTokenIds: new Int32Array(65) }],
      ['no prompt at all', /./, { promptTokenIds: undefined }],
    ];

    it.each(faults)('is refused by its id: %s', (_, message, changes) => {
      admit(newRequest('first', 2));
      const before = device.calls.length;
      const step = schedule(
        { first: 1, good: 3, bad: 2 },
        {
          ...cached({ first: { computed: 2 } }),
          scheduledNewReqs: [newRequest('good', 3), { ...newRequest('bad', 2), ...changes }],
        },
      );
      let thrown: unknown;
      try {
        batch.prepare(step, buffers);
      } catch (error) {
        thrown = error;
      }
      expect(thrown).toBeInstanceOf(InvalidRequestError);
      expect(thrown).toMatchObject({
        code: 'REQUEST_INVALID',
        requestId: 'bad',
        message: expect.stringMatching(/^request bad: /) as string,
      });
      expect((thrown as Error).message).toMatch(message);
      expect(device.calls).toHaveLength(before);
      expect(batch.size).toBe(1);
    });

    it('changes nothing: the step without it runs', () => {
      admit(newRequest('ends', 2), newRequest('waits', 2), newRequest('goes on', 2));
      const calls = device.calls.length;
      const step = schedule(
        { 'goes on': 1, good: 3, bad: 2 },
        {
          ...cached({ 'goes on': { computed: 2, blocks: [20] } }),
          finishedReqIds: ['ends'],
          preemptedReqIds: ['waits'],
          scheduledNewReqs: [
            newRequest('good', 3),
            { ...newRequest('bad', 2), badWordsTokenIds: [[]] },
          ],
        },
      );
      expect(() => batch.prepare(step, buffers)).toThrow(InvalidRequestError);
      expect(device.calls).toHaveLength(calls);

      const without = {
        ...step,
        scheduledNewReqs: step.scheduledNewReqs.slice(0, 1),
        numScheduledTokens: new Map([
          ['goes on', 1],
          ['good', 3],
        ]),
      };
      const prepared = batch.prepare(without, buffers);
      expect(prepared.reqIds).toEqual(['goes on', 'good']);
      expect(prepared.numSampled).toBe(2);
      expect(batch.size).toBe(3);
      const added = device.calls.slice(calls).map(([call]) => call);
      expect(added).toEqual(['remove', 'remove', 'add']);
      expect([...buffers.blockUpdates.subarray(1, 3)]).toEqual([2, 20]);
    });

    it('frees its slot for others', () => {
      const badOne = { ...newRequest('bad', 2), badWordsTokenIds: [[]] };
      for (let i = 0; i < 2 * MAX_NUM_SEQS; i++) expect(() => admit(badOne)).toThrow(/bad word 0/);
      const all = ['a', 'b', 'c', 'd'].map((reqId) => newRequest(reqId, 2));
      expect(admit(...all).numRows).toBe(MAX_NUM_SEQS);
    });
  });
});
