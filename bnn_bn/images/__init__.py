"""Pictures on their way to a network. Imports `core`.

augment   flips, crops, squares and colour noise, a batch at a time
pictures  pixels of any kind as bytes, and the preparation that a network expects
protocol  DataLoaders that do what fastai's do
loaders   the preparation read from any DataLoaders
inventory what lies in a folder of own pictures
""" 
