/** What needs a GPU; scripts/test-gpu.js runs it. */
module.exports = {
  ...require('./jest.config'),
  testPathIgnorePatterns: [],
  testMatch: [
    '<rootDir>/test/gpu/*.test.ts',
    '<rootDir>/test/worker/nanLogits.test.ts',
    '<rootDir>/test/native/ops/{blockScales,experts,inputs,logprobs,requests,residual,ropeAndAttention,routing,samplerProperties,sampling,storedWeights}.test.ts',
  ],
};
