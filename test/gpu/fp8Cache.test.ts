/** The fp8 KV cache on the GPU against transformers. */
import { specifyFp8Cache } from '../support/fp8Cache';

specifyFp8Cache('cuda');
