/* eslint-disable @typescript-eslint/no-require-imports -- scripts are plain CommonJS */
const { kernelsOf, shortName, sumsOf } = require('../../scripts/kernel-times') as {
  kernelsOf: (csv: string) => { name: string; microseconds: number }[];
  shortName: (name: string) => string;
  sumsOf: (kernels: object[], numSteps: number) => object[];
};
/* eslint-enable @typescript-eslint/no-require-imports */

const CSV = `==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum"
"","","","","","ns"
"0","7","void uniproc::cuda::<unnamed>::sumKernel<float, 4>(const T1 *, int)","(256, 1, 1)","(2, 1, 1)","2,500"
"1","7","void uniproc::cuda::<unnamed>::sumKernel<float, 4>(const T1 *, int)","(256, 1, 1)","(2, 1, 1)","3500"
"2","7","other(int)","(32, 1, 1)","(1, 1, 1)","1000"
==PROF== Disconnected
`;

describe('scripts/kernel-times.js', () => {
  it.each([
    [
      'void uniproc::cuda::(anonymous namespace)::sumKernel<float, 4>(const T1 *)',
      'sumKernel<float, 4>',
    ],
    ['void ns::k<__nv_bfloat16, (bool)1, (int)64>(T1 *, int)', 'k<__nv_bfloat16, 1, 64>'],
    ['nvjet_tst_192x8_64x8_2x1_v_bz_TNT', 'nvjet_tst_192x8_64x8_2x1_v_bz_TNT'],
  ])('shortens %s', (name, short) => {
    expect(shortName(name)).toBe(short);
  });

  it("reads the kernels of Nsight Compute's table, with their times", () => {
    expect(kernelsOf(CSV)).toEqual([
      { name: 'sumKernel<float, 4>', microseconds: 2.5 },
      { name: 'sumKernel<float, 4>', microseconds: 3.5 },
      { name: 'other', microseconds: 1 },
    ]);
  });

  it('sums them by name and divides by the steps', () => {
    expect(sumsOf(kernelsOf(CSV), 2)).toEqual([
      { name: 'sumKernel<float, 4>', launches: 1, microseconds: 3 },
      { name: 'other', launches: 0.5, microseconds: 0.5 },
    ]);
  });

  it('rejects a table without kernels', () => {
    expect(() => kernelsOf('==ERROR== LibraryNotLoaded')).toThrow('recorded no kernel');
  });
});
