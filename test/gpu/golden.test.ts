/** Every model family on the GPU against Hugging Face transformers. */
import { specifyFamilies } from '../golden/families';

specifyFamilies('cuda');
