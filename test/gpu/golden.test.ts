/** Every family of models on the GPU against Hugging Face transformers. */
import { specifyFamilies } from '../golden/families';

specifyFamilies('cuda');
